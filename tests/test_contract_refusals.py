"""Models that are not understood are refused and left as they were; towers and scaled configs."""

import pytest
import torch
import transformers
from tiny_models import fresh_model, logits, tiny_config, tiny_model, token_ids
from tiny_multimodal import gemma3, llava

from ropepatch import (
    patch_info,
    patch_model,
    patched,
    unpatch_model,
    verify,
)
from ropepatch.errors import (
    AlreadyScaledError,
    LengthError,
    UnsupportedModelError,
)

IDS = token_ids(2, 24)
SMALL = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gptj():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4}
    return transformers.GPTJForCausalLM(transformers.GPTJConfig(**SMALL, **sizes))


def longt5():
    """Its local attention has relative biases between blocks."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    config = transformers.LongT5Config(**SMALL, **sizes, decoder_start_token_id=0)
    return transformers.LongT5ForConditionalGeneration(config)


def deepseek_v2():
    latent = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8}
    heads = {"qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
    experts = {"n_routed_experts": 2, "first_k_dense_replace": 10, "head_dim": 8}
    return tiny_model("deepseek_v2", **latent, **heads, **experts)


def llama4():
    return tiny_model("llama4_text", head_dim=16, intermediate_size_mlp=32, num_local_experts=2)


def qwen2_vl():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = tiny_config("qwen2").to_dict() | {"rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    )


def granite_swa():
    return tiny_model("granite_swa", attention="eager", sliding_window=16)


def tampered_llama():
    model = fresh_model("llama")
    model.model.rotary_emb.inv_freq[3] *= 1.01
    return model


REFUSED = {
    gptj: "no rotary module",
    longt5: "LongT5.*Attention at .* has relative biases of another kind",
    deepseek_v2: "DeepseekV2RotaryEmbedding at 'model.rotary_emb' returns something else",
    llama4: "Llama4TextRotaryEmbedding at 'model.rotary_emb' returns something else",
    qwen2_vl: "several positions for each token",
    granite_swa: "'model.rotary_embs.0' is one of a list",
    tampered_llama: "the frequencies at 'model.rotary_emb' are not 10000",
}


@torch.no_grad()
def answer(model):
    arguments = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, **arguments).logits


@pytest.mark.parametrize("method", ["yarn", "dynamic_ntk"])
@pytest.mark.parametrize("build", REFUSED)
def test_a_model_that_is_not_understood_is_refused_and_left_as_it_was(build, method):
    torch.manual_seed(0)
    model = build().eval()
    before, config = answer(model), model.config.to_dict()
    with pytest.raises(UnsupportedModelError, match=REFUSED[build]):
        patch_model(model, method, 4)
    assert torch.equal(answer(model), before)
    assert model.config.to_dict() == config
    assert patch_info(model) is None


def test_a_model_on_the_meta_device_is_refused():
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(tiny_config("llama"))
    with pytest.raises(UnsupportedModelError, match="on the meta device"):
        patch_model(model, "yarn", 4)


@pytest.mark.parametrize("thing", [torch.nn.Linear(2, 2), "llama", None])
def test_something_that_holds_no_transformers_model_is_refused(thing):
    with pytest.raises(UnsupportedModelError, match=type(thing).__name__):
        patch_model(thing, "yarn", 4)


@pytest.mark.parametrize("build", [llava, gemma3])
def test_only_the_text_decoder_of_a_multimodal_model_is_patched(build):
    torch.manual_seed(0)
    model = build().eval()
    before = logits(model, IDS)
    tower = {name: module for name, module in model.named_modules() if "vision" in name}
    states = {name: dict(module.named_buffers()) for name, module in tower.items()}
    with patched(model, "yarn", 4):
        assert patch_info(model).sites == ("model.language_model.rotary_emb",)
        assert verify(model).sites == 1
        live = {name: module for name, module in model.named_modules() if "vision" in name}
        assert live == tower
        assert all(
            dict(module.named_buffers()).keys() == states[name].keys()
            and all(buffer is states[name][key] for key, buffer in module.named_buffers())
            for name, module in live.items()
        )
    assert torch.equal(logits(model, IDS), before)


def test_the_text_decoder_of_a_multimodal_model_computes_what_the_model_alone_does():
    torch.manual_seed(0)
    whole = llava().eval()
    alone = transformers.LlamaForCausalLM(tiny_config("llama")).eval()
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    patch_model(whole, "yarn", 4)
    patch_model(alone, "yarn", 4)
    torch.testing.assert_close(logits(whole, IDS), logits(alone, IDS), atol=1e-6, rtol=0)


SCALED = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}


def scaled_llama(name):
    length = 64 if name != "dynamic" else 32
    parameters = {"rope_theta": 1e4, **SCALED[name]}
    return tiny_model("llama", rope_parameters=parameters, max_position_embeddings=length)


def known_length(name):
    """A config of `linear` does not say from which length it scales."""
    return {"original_max_position_embeddings": 32} if name == "linear" else {}


@pytest.mark.parametrize("name", SCALED)
def test_a_checkpoint_that_is_scaled_already_is_refused_and_left_as_it_was(name):
    model = scaled_llama(name)
    before = logits(model, IDS)
    with pytest.raises(AlreadyScaledError, match=rf"rope_type {name}.*replace=True"):
        patch_model(model, "yarn", 4)
    assert torch.equal(logits(model, IDS), before)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("method", ["yarn", "dynamic_yarn"])
def test_replacing_a_checkpoints_scaling_equals_patching_the_unscaled_model(name, method):
    ids = token_ids(2, 60)
    replaced = patch_model(scaled_llama(name), method, 4, replace=True, **known_length(name))
    expected = patch_model(tiny_model("llama"), method, 4)
    assert torch.equal(logits(replaced, ids), logits(expected, ids))
    assert replaced.config.max_position_embeddings == 128


@pytest.mark.parametrize("name", SCALED)
def test_unpatching_a_replaced_scaling_gives_the_scaled_model_back(name):
    model, ids = scaled_llama(name), token_ids(2, 30)
    before, config = logits(model, ids), model.config.to_dict()
    patch_model(model, "linear", 4, replace=True, **known_length(name))
    unpatch_model(model)
    assert torch.equal(logits(model, ids), before)
    assert model.config.to_dict() == config


def test_a_scaled_config_without_its_original_length_must_be_told():
    with pytest.raises(LengthError, match="give original_max_position_embeddings="):
        patch_model(scaled_llama("linear"), "yarn", 4, replace=True)
