"""verify: passes on every live patch, and catches every way to lose one."""

import pytest
import torch
from tiny_models import KINDS, SLIDING_KINDS, fresh_model, logits, tiny_model, token_ids
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from ropepatch import load_pretrained, patch_model, save_pretrained, unpatch_model, verify
from ropepatch.errors import PatchVerificationError

IDS = token_ids(2, 40)


def patched_llama(method="yarn", **options):
    return patch_model(fresh_model("llama"), method, 4, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["linear", "yarn", "llama3", "truncated", "dynamic_ntk"])
def test_a_live_patch_passes(kind, method):
    found = verify(patch_model(fresh_model(kind), method, 4))
    assert (found.method, found.live, found.sites) == (method, "patched", 1)
    assert found.frequency_error == 0
    assert found.logit_change > 1e-4


@pytest.mark.parametrize("kind", SLIDING_KINDS)
def test_every_scaled_layer_type_is_counted(kind):
    types = ["full_attention", "sliding_attention"]
    assert verify(patch_model(fresh_model(kind), "yarn", 4, layer_types=types)).sites == 2


@pytest.mark.parametrize("method", ["yarn", "dynamic_yarn"])
def test_factor_one_passes_though_it_changes_no_logit(method):
    assert verify(patch_model(fresh_model("llama"), method, 1)).logit_change == 0


def test_verifying_leaves_the_model_as_it_was():
    model = patched_llama("dynamic_ntk").train()
    hooks = {module: dict(module._forward_hooks) for module in model.modules()}
    before = logits(model, IDS)
    verify(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert {module: dict(module._forward_hooks) for module in model.modules()} == hooks
    assert torch.equal(logits(model, IDS), before)


def test_verifying_is_deterministic_with_dropout():
    model = patch_model(tiny_model("llama", attention_dropout=0.5), "yarn", 4).train()
    assert verify(model) == verify(model)


def test_an_unpatched_model_fails():
    with pytest.raises(PatchVerificationError, match="no patch is live"):
        verify(fresh_model("llama"))


def test_a_patch_that_was_taken_out_fails():
    with pytest.raises(PatchVerificationError, match="no patch is live"):
        verify(unpatch_model(patched_llama()))


def test_a_reload_of_the_weights_alone_fails():
    reloaded = fresh_model("llama")
    reloaded.load_state_dict(patched_llama().state_dict())
    with pytest.raises(PatchVerificationError, match=r"no patch is live.*names none"):
        verify(reloaded)


def test_a_replaced_rotary_module_fails():
    model = patched_llama()
    model.model.rotary_emb = fresh_model("llama").model.rotary_emb
    with pytest.raises(PatchVerificationError, match=r"overwritten at LlamaModel\.rotary_emb"):
        verify(model)


def test_a_replaced_decoder_fails():
    model = patched_llama()
    model.model = fresh_model("llama").model
    with pytest.raises(PatchVerificationError):
        verify(model)


def test_a_replaced_config_object_fails():
    model = patched_llama()
    model.config = model.model.config = fresh_model("llama").config
    with pytest.raises(PatchVerificationError, match="overwritten at LlamaConfig"):
        verify(model)


def test_another_generation_config_passes():
    model = fresh_model("llama")
    model.generation_config.max_length = 32
    patch_model(model, "yarn", 4)
    model.generation_config.max_length = 50
    assert verify(model).live == "patched"


def test_a_replaced_generate_of_a_length_dependent_method_fails():
    model = patched_llama("dynamic_ntk")
    del model.generate
    with pytest.raises(PatchVerificationError, match=r"LlamaForCausalLM\.generate"):
        verify(model)


def test_a_lost_hook_of_a_length_dependent_method_fails():
    model = patched_llama("dynamic_ntk")
    model.model._forward_pre_hooks.clear()
    with pytest.raises(PatchVerificationError, match="the forward hook of LlamaModel"):
        verify(model)


EDITS = {
    "max_position_embeddings": lambda config: setattr(config, "max_position_embeddings", 64),
    "rope_parameters": lambda config: setattr(
        config, "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}
    ),
    "rope_parameters in place": lambda config: config.rope_parameters.update(factor=2.0),
    "ropepatch": lambda config: delattr(config, "ropepatch"),
    "ropepatch in place": lambda config: config.ropepatch["options"].update(factor=2.0),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_an_edited_config_fails(edit, kind):
    model = patch_model(fresh_model(kind), "yarn", 4)
    EDITS[edit](model.config)
    attribute = edit.removesuffix(" in place")
    with pytest.raises(PatchVerificationError, match=rf"Config\.{attribute}"):
        verify(model)


@pytest.mark.parametrize("edit", EDITS)
def test_a_patch_whose_config_was_edited_can_still_be_undone(edit):
    model = fresh_model("llama")
    before, config = logits(model, IDS), model.config.to_dict()
    EDITS[edit](patch_model(model, "yarn", 4).config)
    unpatch_model(model)
    assert torch.equal(logits(model, IDS), before)
    assert model.config.to_dict() == config


def site_of(model):
    (site,) = model.model.rotary_emb.sites.values()
    return site


TAMPERINGS = {
    "scaled by a percent": lambda site: site.frequencies.inv_freq.mul_(1.01),
    "one pair": lambda site: site.frequencies.inv_freq[-1:].mul_(1 + 1e-9),
    "not a number": lambda site: site.frequencies.inv_freq[-1:].fill_(float("nan")),
    "rounded": lambda site: site.frequencies.inv_freq.copy_(site.frequencies.inv_freq.float()),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_frequencies_that_were_written_to_fail(tampering):
    model = patched_llama()
    TAMPERINGS[tampering](site_of(model))
    with pytest.raises(PatchVerificationError, match="frequencies of 'yarn'"):
        verify(model)


def test_another_attention_factor_fails():
    model = patched_llama()
    object.__setattr__(site_of(model).frequencies, "attention_factor", 1.0)
    with pytest.raises(PatchVerificationError, match="attention factor"):
        verify(model)


@pytest.mark.parametrize("method", ["linear", "dynamic_linear"])
def test_stock_frequencies_that_were_written_to_fail(method):
    """Short rows of length-dependent methods are computed by the stock module."""
    model = patched_llama(method)
    model.model.rotary_emb.stock.inv_freq.mul_(1.01)
    if method == "linear":  # does not use them
        assert verify(model).method == "linear"
    else:
        with pytest.raises(PatchVerificationError, match="frequencies"):
            verify(model)


def test_attention_that_no_longer_uses_the_rotary_output_fails(monkeypatch):
    model = patched_llama()
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda q, k, *args, **kwargs: (q, k)
    )
    with pytest.raises(PatchVerificationError, match="logits do not depend on it"):
        verify(model)


@pytest.mark.parametrize("factor", [1, 4])
def test_a_replaced_encoding_that_attention_does_not_use_fails_at_any_factor(factor, monkeypatch):
    model = patch_model(fresh_model("llama"), "nope", factor)
    assert verify(model).logit_change > 1e-4
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda q, k, *args, **kwargs: (q, k)
    )
    with pytest.raises(PatchVerificationError, match="logits do not depend on it"):
        verify(model)


def test_a_rotary_module_whose_forward_was_replaced_fails():
    model = patched_llama()
    stock = model.model.rotary_emb.stock
    model.model.rotary_emb.forward = stock.forward
    with pytest.raises(PatchVerificationError, match="logits do not depend on it"):
        verify(model)


@pytest.fixture
def saved(tmp_path):
    return save_pretrained(patched_llama(), tmp_path / "saved")


def test_a_checkpoint_that_plain_transformers_loaded_passes(saved):
    found = verify(AutoModelForCausalLM.from_pretrained(saved))
    assert (found.method, found.live, found.sites) == ("yarn", "native", 1)
    assert found.frequency_error < 2e-6


def test_a_natively_loaded_model_that_was_cast_fails(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    with pytest.raises(PatchVerificationError, match="bfloat16"):
        verify(model.to(torch.bfloat16))


def test_a_natively_loaded_model_in_half_precision_passes(saved):
    """from_pretrained keeps frequencies in float32 whatever the dtype of the weights."""
    verify(AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16))


def test_a_natively_loaded_model_whose_frequencies_were_written_to_fails(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    model.model.rotary_emb.inv_freq.mul_(1.01)
    with pytest.raises(PatchVerificationError, match="the config says yarn, factor 4"):
        verify(model)


def test_a_natively_loaded_model_with_another_attention_factor_fails(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    model.model.rotary_emb.attention_scaling = 1.0
    with pytest.raises(PatchVerificationError, match=r"the attention factor by 1\.4e-01"):
        verify(model)  # 0.1 ln 4 + 1, YaRN's equation 22


def test_a_checkpoint_loaded_with_an_unpatched_config_fails(saved):
    config = fresh_model("llama").config
    with pytest.raises(PatchVerificationError, match="no patch is live"):
        verify(AutoModelForCausalLM.from_pretrained(saved, config=config))


def test_a_checkpoint_loaded_with_other_rope_parameters_fails(saved):
    config = AutoConfig.from_pretrained(saved)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    with pytest.raises(PatchVerificationError, match="the config says yarn"):
        verify(AutoModelForCausalLM.from_pretrained(saved, config=config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_from_load_pretrained_passes_after_a_cast(saved, dtype):
    assert verify(load_pretrained(saved).to(dtype)).live == "patched"
