"""What there is to see of a model's encoding, patched or not, or by a method that is not put in."""

import math

import pytest
import torch
from tiny_bias_models import fresh_bias_model
from tiny_models import fresh_model, tiny_config, tiny_model
from tiny_table_models import TABLES, fresh_table_model

from ropepatch import patch_model
from ropepatch.errors import UnsupportedMechanismError
from ropepatch.methods import make_method
from ropepatch.model_portraits import model_portraits


def by(name, **options):
    return lambda length: make_method(name, **options)


def test_an_unpatched_model_is_shown_as_its_config_has_it():
    (shown,) = model_portraits(fresh_model("llama"))
    assert (shown.title, shown.length, shown.target) == ("unscaled", 32, 32)
    assert (shown.geometry.dim, shown.geometry.base) == (16, 10_000.0)
    assert set(shown.treatments) == {"kept"}


@pytest.mark.parametrize("name", ["linear", "ntk", "yarn", "dynamic_ntk"])
def test_a_patched_model_is_shown_as_its_method_makes_the_unpatched_one(name):
    (as_would_be,) = model_portraits(fresh_model("llama"), by(name, factor=4.0))
    (as_is,) = model_portraits(patch_model(fresh_model("llama"), name, 4.0))
    assert as_is.title == as_would_be.title == f"{name}, factor 4"
    assert (as_is.length, as_is.target) == (32, 128)
    assert as_is.geometry == as_would_be.geometry
    assert torch.equal(as_is.inv_freq, as_would_be.inv_freq)


def test_another_method_is_shown_in_the_place_of_a_patch():
    (shown,) = model_portraits(
        patch_model(fresh_model("llama"), "ntk", 8.0), by("linear", factor=4.0)
    )
    assert shown.title == "linear, factor 4"
    assert shown.target == 128
    assert set(shown.treatments) == {"interpolated"}


def test_a_config_that_scales_by_itself_is_shown_so():
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    config = tiny_config("llama", rope_parameters=rope, max_position_embeddings=4096)
    (shown,) = model_portraits(tiny_model("llama", config=config))
    assert shown.title == "llama3, by the config"
    assert (shown.length, shown.target) == (256, 4096)
    # Wavelengths 6.3, 19.9, 62.8 are below 256/4; 198.7 between; 628 … above 256.
    expected = ["kept"] * 3 + ["blended"] + ["interpolated"] * 4
    assert shown.treatments == expected
    # Scaled by 8 and read 16 times as far: twice the angles of training.
    assert shown.leaves_range.tolist() == [False] * 4 + [True] * 4


def test_longrope_of_a_config_is_shown_by_its_factors_for_long_text():
    factors = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 8.0]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 8,
        "long_factor": factors,
        "original_max_position_embeddings": 256,
    }
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=1024)
    (shown,) = model_portraits(model)
    torch.testing.assert_close(1 / shown.ratios, torch.tensor(factors).double(), rtol=1e-6, atol=0)
    expected = ["kept", *["blended"] * 5, "interpolated", "slowed more"]  # target/trained is 4
    assert shown.treatments == expected
    assert shown.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(256)))
    rotary = model.model.rotary_emb
    assert torch.equal(rotary.inv_freq, rotary.original_inv_freq)  # looking changes nothing


def test_yarn_of_a_config_is_shown_with_its_attention_factor():
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    (shown,) = model_portraits(
        tiny_model("llama", rope_parameters=rope, max_position_embeddings=1024)
    )
    assert shown.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_only_full_attention_is_shown_where_layer_types_rotate_apart():
    (shown,) = model_portraits(fresh_model("gemma3_text"), by("yarn", factor=4.0))
    assert shown.title == "full_attention, yarn, factor 4"
    assert shown.geometry.base == 1_000_000.0


def test_slopes_of_a_model_reach_as_far_as_they_are_scaled():
    # Six heads: slopes 1/4, 1/16, 1/64, 1/256, 1/2, 1/8, whose reach is ln 1000 over each.
    (plain,) = model_portraits(fresh_bias_model("bloom"))
    assert plain.reach() == [28, 111, 443, 1769, 14, 56]
    (scaled,) = model_portraits(fresh_bias_model("bloom"), by("linear", factor=4.0))
    assert scaled.reach() == [111, 443, 1769, 7074, 56, 222]
    (patched,) = model_portraits(patch_model(fresh_bias_model("bloom"), "linear", 4.0))
    assert patched.reach() == scaled.reach()
    assert patched.target == 128


@pytest.mark.parametrize("patched", [False, True])
def test_t5_shows_encoder_and_decoder_by_the_rescaled_bucket(patched):
    model = fresh_bias_model("t5")
    tables = [
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.detach().double()
        for stack in (model.encoder, model.decoder)
    ]
    if patched:
        shown = model_portraits(patch_model(model, "log", 4.0))
    else:
        shown = model_portraits(model, by("log", factor=4.0))
    assert [each.title for each in shown] == ["encoder, log, factor 4", "decoder, log, factor 4"]
    distances = torch.tensor([3.0, 512.0, -512.0], dtype=torch.float64)
    encoder, decoder = (each.bias(distances) for each in shown)
    # Reaches 4·128 tokens: near distances have a bucket of their own, the farthest the last one; of
    # the encoder's 32 the past has 0 to 15, the future 16 to 31; the decoder sees no future (0).
    torch.testing.assert_close(encoder, tables[0][[3, 15, 31]].T)
    torch.testing.assert_close(decoder, tables[1][[3, 31, 0]].T)
    assert [each.bidirectional for each in shown] == [True, False]


def test_tables_of_every_layer_are_told_apart():
    titles = [shown.title for shown in model_portraits(fresh_bias_model("umt5"))]
    assert titles == ["encoder, layer 1 of 2, unscaled", "decoder, layer 1 of 2, unscaled"]


def test_a_replacing_method_is_shown_with_the_models_sizes():
    (alibi,) = model_portraits(fresh_model("llama"), by("alibi", factor=4.0))
    assert alibi.num_heads == 4
    (xpos,) = model_portraits(fresh_model("gpt_neox"), by("xpos"))
    assert xpos.geometry.dim == 4
    (vectors,) = model_portraits(fresh_model("llama"), by("sinusoidal"))
    assert vectors.dim == 64
    encoder, decoder = model_portraits(fresh_bias_model("t5"), by("alibi"))
    assert (encoder.part, encoder.bidirectional) == ("encoder", True)
    assert (decoder.part, decoder.bidirectional) == ("decoder", False)


@pytest.mark.parametrize(
    ("kind", "both_ways"), [("bert", True), ("roberta", True), ("gpt2", False)]
)
def test_a_bias_of_an_encoder_is_shown_to_both_sides(kind, both_ways):
    (as_would_be,) = model_portraits(fresh_table_model(kind), by("alibi", factor=4.0))
    (as_is,) = model_portraits(patch_model(fresh_table_model(kind), "alibi", 4.0))
    assert as_would_be.bidirectional == as_is.bidirectional == both_ways
    assert as_would_be.reach(-1) == as_is.reach(-1)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "roberta"])
@pytest.mark.parametrize("how", ["stock", "by a method", "patched"])
def test_a_learned_table_is_shown_by_its_rows(kind, how):
    model = fresh_table_model(kind)
    path, offset = TABLES[kind]
    rows = model.get_submodule(path).weight.detach().double()[offset:]
    if how == "stock":
        (shown,) = model_portraits(model)
        assert (shown.title, shown.target) == ("unscaled", 32)
        assert torch.equal(shown.vectors(torch.arange(32)), rows)
        return
    if how == "patched":
        (shown,) = model_portraits(patch_model(model, "linear", 4.0))
    else:
        (shown,) = model_portraits(model, by("linear", factor=4.0))
    assert (shown.title, shown.target) == ("linear, factor 4", 128)
    between = 0.75 * rows[10] + 0.25 * rows[11]  # position 41 lies at 10.25
    torch.testing.assert_close(shown.vectors(torch.tensor([41]))[0], between)


@pytest.mark.parametrize(("kind", "name"), [("bloom", "yarn"), ("t5", "ntk"), ("bloom", "alibi")])
def test_a_method_that_does_not_serve_the_model_is_refused(kind, name):
    with pytest.raises(UnsupportedMechanismError, match=name):
        model_portraits(fresh_bias_model(kind), by(name))
