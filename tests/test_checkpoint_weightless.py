"""Models without weights, against accelerate's and against the model itself."""

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ropepatch.checkpoint.weightless import weightless_model

CONFIGS = {
    "llama": AutoConfig.for_model(
        "llama", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=40
    ),
    "tied": AutoConfig.for_model(
        "llama", hidden_size=32, num_hidden_layers=1, vocab_size=40, tie_word_embeddings=True
    ),
    "bloom": AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=4, vocab_size=40),
    "t5": AutoConfig.for_model("t5", d_model=32, num_layers=1, num_heads=4, vocab_size=40),
}


def auto_class(config):
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def layout(tensors):
    return {name: (t.shape, t.dtype, t.device.type, t.requires_grad) for name, t in tensors}


@pytest.mark.parametrize("kind", CONFIGS)
def test_parameters_are_those_of_accelerate(kind):
    config = CONFIGS[kind]
    with init_empty_weights(include_buffers=False):
        reference = auto_class(config).from_config(config, dtype=torch.bfloat16)
    reference.tie_weights()
    model = weightless_model(config, torch.bfloat16)
    assert layout(model.named_parameters()) == layout(reference.named_parameters())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_buffers_have_the_values_of_the_whole_model(kind):
    whole = auto_class(CONFIGS[kind]).from_config(CONFIGS[kind], dtype=torch.float32)
    buffers = dict(weightless_model(CONFIGS[kind], torch.float32).named_buffers())
    assert buffers.keys() == dict(whole.named_buffers()).keys()
    assert all(torch.equal(buffers[name], value) for name, value in whole.named_buffers())


def test_tied_parameters_stay_tied():
    model = weightless_model(CONFIGS["tied"], torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_models_made_afterwards_have_weights():
    weightless_model(CONFIGS["llama"], torch.float32)
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
