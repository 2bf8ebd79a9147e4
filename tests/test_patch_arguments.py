"""What patch_model is told: factors, lengths, methods, layer types; and what it writes into configs."""

import pytest
import torch
from tiny_models import SLIDING_KINDS, fresh_model, logits, token_ids

from ropepatch import make_method, patch_info, patch_model, unpatch_model
from ropepatch.errors import (
    LengthError,
    MethodOptionError,
    NothingPatchedError,
    UnknownMethodError,
)

IDS = token_ids(2, 24)


@pytest.mark.parametrize("kind", SLIDING_KINDS)
@pytest.mark.parametrize(
    ("asked", "scaled"),
    [
        (None, ("full_attention",)),
        (["sliding_attention"], ("sliding_attention",)),
        (["full_attention", "sliding_attention"], ("full_attention", "sliding_attention")),
    ],
)
def test_patch_info_names_the_layer_types_that_were_scaled(kind, asked, scaled):
    model = patch_model(fresh_model(kind), "linear", 4, layer_types=asked)
    assert patch_info(model).layer_types == list(scaled)


@pytest.mark.parametrize("kind", SLIDING_KINDS)
@pytest.mark.parametrize("layer_type", ["sliding_attention", "full_attention"])
def test_layer_types_that_are_not_scaled_rotate_as_before(kind, layer_type):
    model = fresh_model(kind)
    x, position_ids = torch.zeros(1, 1, 1), torch.arange(60)[None]
    before = model.model.rotary_emb(x, position_ids, layer_type)
    other = {"sliding_attention", "full_attention"} - {layer_type}
    patch_model(model, "linear", 4, layer_types=sorted(other))
    after = model.model.rotary_emb(x, position_ids, layer_type)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_unknown_layer_types_are_refused(kind):
    with pytest.raises(MethodOptionError, match="chunked_attention"):
        patch_model(fresh_model(kind), "linear", 4, layer_types=["chunked_attention"])


FACTORS = [
    ({}, 4.0),
    ({"factor": 3}, 3.0),
    ({"factor": 1.5}, 1.5),
    ({"target_length": 80}, 2.5),
    ({"factor": 2.5, "target_length": 80}, 2.5),
    ({"target_length": 80, "original_max_position_embeddings": 16}, 5.0),
]


@pytest.mark.parametrize(("given", "factor"), FACTORS)
def test_the_factor_follows_from_any_consistent_arguments(given, factor):
    info = patch_info(patch_model(fresh_model("llama"), "yarn", **given))
    assert info.factor == factor
    assert info.max_position_embeddings == factor * info.original_max_position_embeddings


def test_a_method_instance_brings_its_own_factor_and_options():
    method = make_method("yarn", factor=3, beta_fast=16)
    info = patch_info(patch_model(fresh_model("llama"), method))
    assert info.factor == 3
    assert info.options["beta_fast"] == 16


MISTAKES = [
    ({"factor": 3, "target_length": 80}, LengthError, "the factor is 2.5; give one"),
    ({"target_length": 16}, LengthError, "at least the trained length"),
    ({"target_length": 80.0}, LengthError, "whole number"),
    ({"target_length": True}, LengthError, "whole number"),
    ({"factor": 0.5}, MethodOptionError, "factor is 0.5"),
    ({"factor": float("nan")}, MethodOptionError, "factor is nan"),
    ({"factor": "4"}, MethodOptionError, "factor is '4'"),
    ({"factor": [4]}, MethodOptionError, "factor is"),
    ({"original_max_position_embeddings": 0}, ValueError, "original_max_position_embeddings is 0"),
    ({"original_max_position_embeddings": -8}, ValueError, "original_max_position_embeddings is"),
    ({"original_max_position_embeddings": "32"}, ValueError, "original_max_position_embeddings is"),
    ({"original_max_position_embeddings": 2.5}, ValueError, "original_max_position_embeddings is"),
    ({"method": "yarm"}, UnknownMethodError, "did you mean 'yarn'"),
    ({"method": 4}, UnknownMethodError, "no method 4"),
    ({"beta_fats": 8}, MethodOptionError, "did you mean 'beta_fast'"),
    (
        {"method": make_method("yarn", factor=3), "factor": 4},
        LengthError,
        "contradicts the factor 3",
    ),
    ({"method": make_method("yarn"), "beta_fast": 8}, MethodOptionError, "given as an instance"),
    ({"layer_types": "full_attention"}, MethodOptionError, "layer_types"),
    ({"layer_types": []}, NothingPatchedError, "layer_types="),
]


@pytest.mark.parametrize(("given", "error", "message"), MISTAKES)
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_mistake_is_named_and_the_model_left_as_it_was(kind, given, error, message):
    model = fresh_model(kind)
    before = logits(model, IDS)
    with pytest.raises(error, match=message):
        patch_model(model, **given)
    assert torch.equal(logits(model, IDS), before)
    assert patch_info(model) is None


def test_the_config_of_the_patched_model_says_how_long_it_may_read():
    model = patch_model(fresh_model("llama"), "yarn", target_length=80)
    assert model.config.max_position_embeddings == 80
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert model.config.rope_parameters["original_max_position_embeddings"] == 32


def test_a_generation_config_that_ends_at_the_old_limit_ends_at_the_new_one():
    model = fresh_model("llama")
    model.generation_config.max_length = 32
    patch_model(model, "yarn", 4)
    assert model.generation_config.max_length == 128
    unpatch_model(model)
    assert model.generation_config.max_length == 32
