"""Bad input to models with score biases: a clear error before anything changes."""

import shutil

import pytest
import torch
from tiny_bias_models import (
    ALIBI_KINDS,
    KINDS,
    RELATIVE_KINDS,
    answers,
    bias_model,
    fresh_bias_model,
    inputs,
)
from tiny_models import fresh_model, token_ids
from transformers import DynamicCache

from ropepatch import list_methods, patch_info, patch_model
from ropepatch.errors import (
    LengthError,
    MaskError,
    MethodOptionError,
    NothingPatchedError,
    UnsupportedMechanismError,
)

IDS = token_ids(2, 24)


def assert_refused(model, error, match, *arguments, **options):
    """The error, and a model that is bit-identical to what it was."""
    before, config = answers(model, IDS), model.config.to_dict()
    with pytest.raises(error, match=match):
        patch_model(model, *arguments, **options)
    assert torch.equal(answers(model, IDS), before)
    assert model.config.to_dict() == config
    assert patch_info(model) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["yarn", "dynamic_ntk", "base_change"])
def test_a_rotary_only_method_is_refused_and_those_that_serve_are_named(kind, method):
    options = {"new_base": 1e6} if method == "base_change" else {}
    serving = "linear.*log" if kind in RELATIVE_KINDS else "dynamic_linear.*linear.*ntk"
    match = rf"{method}.*{serving}"
    assert_refused(fresh_bias_model(kind), UnsupportedMechanismError, match, method, 4, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_list_methods_names_those_that_scale_a_model(kind):
    served = ["linear", "log"] if kind in RELATIVE_KINDS else ["dynamic_linear", "linear", "ntk"]
    assert list_methods(fresh_bias_model(kind), replacing=False) == served


@pytest.mark.parametrize("part", ["encodr", "", None, "both "])
def test_a_misspelt_part_is_refused(part):
    match = r"part is .*both, encoder, decoder"
    assert_refused(fresh_bias_model("t5"), MethodOptionError, match, "linear", 4, part=part)


@pytest.mark.parametrize("kind", [*ALIBI_KINDS, "llama"])
def test_a_part_of_a_model_that_has_one_only_is_refused(kind):
    model = fresh_model("llama") if kind == "llama" else fresh_bias_model(kind)
    assert_refused(model, MethodOptionError, "part does not apply", "linear", 4, part="encoder")


def test_the_decoder_of_an_encoder_is_refused():
    model = bias_model("t5", head="EncoderModel")
    match = "no decoder, only the encoder"
    assert_refused(model, NothingPatchedError, match, "linear", 4, part="decoder")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["flash", "", None, "sdpa"])
def test_an_unknown_attention_is_refused(kind, attention):
    match = r"attention is .*auto, folded, toeplitz, flex, eager"
    model = fresh_bias_model(kind)
    assert_refused(model, MethodOptionError, match, "linear", 4, attention=attention)


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_folding_a_table_into_channels_is_refused(kind):
    match = r"attention='folded' folds ALiBi's own slopes.*this bias is another.*'auto'"
    model = fresh_bias_model(kind)
    assert_refused(model, MethodOptionError, match, "linear", 4, attention="folded")


def test_an_attention_for_a_rotary_model_is_refused():
    match = "attention does not apply .* rotary"
    model = fresh_model("llama")
    assert_refused(model, MethodOptionError, match, "linear", 4, attention="eager")


@pytest.mark.parametrize("kind", ["bloom", "t5"])
def test_flex_without_a_compiler_is_refused(kind, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    match = r"attention='flex' needs a C\+\+ compiler"
    model = fresh_bias_model(kind)
    assert_refused(model, MethodOptionError, match, "linear", 4, attention="flex")


@pytest.mark.parametrize("kind", ["bloom", "t5", "mt5", "umt5"])
def test_a_config_without_a_length_must_be_told(kind):
    absent = {"seq_length": None} if kind == "bloom" else {"n_positions": None}
    model = bias_model(kind, **absent)
    match = "does not say how many tokens.*original_max_position_embeddings="
    assert_refused(model, LengthError, match, "linear", 4)
    patch_model(model, "linear", 4, original_max_position_embeddings=32)
    assert patch_info(model).max_position_embeddings == 128


@pytest.mark.parametrize("given", [0, -1, 32.0, True, "32"])
def test_a_length_that_is_none_is_refused(given):
    options = {"original_max_position_embeddings": given}
    assert_refused(fresh_bias_model("bloom"), LengthError, "at least 1", "linear", 4, **options)


def test_layer_types_of_a_score_bias_are_refused():
    options = {"layer_types": ["full_attention"]}
    match = "layer_types does not apply"
    assert_refused(fresh_bias_model("bloom"), MethodOptionError, match, "linear", 4, **options)


def test_ntk_for_one_head_is_refused():
    model = bias_model("bloom", n_head=1)
    assert_refused(model, MethodOptionError, "num_heads is 1", "ntk", 4)


MASKS = {
    "too short": (torch.ones(2, 23).long(), r"shape \(2, 23\)"),
    "too long": (torch.ones(2, 25).long(), r"shape \(2, 25\)"),
    "other rows": (torch.ones(3, 24).long(), r"shape \(3, 24\)"),
    "one dimension": (torch.ones(24).long(), r"shape \(24,\)"),
    "three dimensions": (torch.ones(2, 24, 24).bool(), r"shape \(2, 24, 24\)"),
    "other queries": (torch.ones(2, 1, 23, 24).bool(), r"shape \(2, 1, 23, 24\)"),
    "other keys": (torch.ones(2, 1, 24, 23).bool(), r"shape \(2, 1, 24, 23\)"),
    "a mask for every head": (torch.ones(2, 6, 24, 24).bool(), r"shape \(2, 6, 24, 24\)"),
    "float": (torch.ones(2, 24), r"float32.*mask\.bool\(\)"),
    "additive": (torch.zeros(2, 1, 24, 24), r"float32.*mask\.bool\(\)"),
    "a list": ([[1] * 24] * 2, "is a list"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_that_cannot_be_one_is_refused_before_anything_is_cached(kind, mask):
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    before = answers(model, IDS)
    given, match = MASKS[mask]
    cache = None if kind in RELATIVE_KINDS else DynamicCache(config=model.config)
    arguments = inputs(model, IDS) | {"past_key_values": cache, "use_cache": cache is not None}
    with pytest.raises(MaskError, match=match):
        model(**arguments | {"attention_mask": given})
    assert cache is None or cache.get_seq_length() == 0
    assert torch.equal(answers(model, IDS), before)


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_a_mask_of_the_decoder_that_cannot_be_one_is_refused(kind):
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    with pytest.raises(MaskError, match=r"shape \(2, 23\)"):
        model(**inputs(model, IDS) | {"decoder_attention_mask": torch.ones(2, 23).long()})


@pytest.mark.parametrize("kind", ["bloom", "falcon"])
def test_padding_between_tokens_is_refused_where_stock_does_not_count_it(kind):
    mask = torch.ones_like(IDS)
    mask[1, 10:13] = 0
    with pytest.raises(MaskError, match=r"row 1 .*padding between tokens.*pad on the left"):
        answers(patch_model(fresh_bias_model(kind), "linear", 4), IDS, mask)


def test_padding_between_tokens_counts_as_distance_in_mpt_as_in_stock():
    model = fresh_bias_model("mpt")
    mask = torch.ones_like(IDS)
    mask[1, 10:13] = 0
    stock = answers(model, IDS, mask)
    patched_answers = answers(patch_model(model, "linear", 1), IDS, mask)
    torch.testing.assert_close(patched_answers[mask.bool()], stock[mask.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ALIBI_KINDS)
def test_a_mask_of_the_new_tokens_alone_is_refused(kind):
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    cache = DynamicCache(config=model.config)
    model(input_ids=IDS, past_key_values=cache, use_cache=True)
    with pytest.raises(MaskError, match=r"shape \(2, 3\); allowed: \(2, 27\)"):
        model(input_ids=IDS[:, :3], past_key_values=cache, attention_mask=torch.ones(2, 3).long())
    assert cache.get_seq_length() == IDS.shape[1]
