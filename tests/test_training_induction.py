"""The hand-written heads of the induction circuit, read off the attention weights."""

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from ropepatch.errors import ConfigError
from ropepatch.training.induction import add_induction_circuit


def llama(**fields):
    torch.manual_seed(0)
    config = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
    }
    return LlamaForCausalLM(LlamaConfig(**(config | fields))).eval()


@torch.no_grad()
def attentions(model, input_ids):
    """Of head 0 in each layer, (layer, batch, query, key)."""
    found = model(input_ids, output_attentions=True).attentions
    return torch.stack([layer[:, 0] for layer in found])


@pytest.fixture(scope="module")
def weights():
    """Rows of 100 distinct tokens; the last is the one at place 10, 40 or 70 once more."""
    model = llama()
    add_induction_circuit(model)
    input_ids = torch.stack([torch.randperm(512)[:100] for _ in range(60)])
    places = torch.tensor([10, 40, 70]).repeat(20)
    input_ids[:, -1] = input_ids[torch.arange(60), places]
    return attentions(model, input_ids), places


def test_the_first_layer_attends_to_the_previous_token(weights):
    previous = weights[0][0][:, 1:].diagonal(dim1=1, dim2=2)
    assert previous.mean() > 0.7


def test_the_second_layer_attends_to_what_followed_the_same_token(weights):
    (_, second), places = weights
    hits = second[:, -1].argmax(dim=1) == places + 1
    assert hits.float().mean() > 0.3  # chance is 0.01
    assert all(hits[places == place].any() for place in (10, 40, 70))


def test_without_the_circuit_neither_head_does():
    input_ids = torch.randperm(512)[None, :100]
    first, _ = attentions(llama(), input_ids)
    assert first[0, 1:].diagonal(dim1=0, dim2=1).mean() < 0.1


def test_the_circuit_depends_on_its_seed_only():
    models = [llama(), llama(), llama()]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        add_induction_circuit(model, seed=seed)
    first, same, other = (model.model.layers[1].self_attn.q_proj.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_other_architectures_are_refused():
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    with pytest.raises(ConfigError, match="not for a gpt_neox of 2"):
        add_induction_circuit(GPTNeoXForCausalLM(config))


def test_a_single_layer_is_refused():
    with pytest.raises(ConfigError, match="at least two layers"):
        add_induction_circuit(llama(num_hidden_layers=1))


def test_small_heads_are_refused():
    with pytest.raises(ConfigError, match="head_dim=16 has 8"):
        add_induction_circuit(llama(num_attention_heads=16))
