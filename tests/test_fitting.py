"""A new bias starts from the scores of the checkpoint's own positions."""

from pathlib import Path

import pytest
import torch
from replacement_cells import fresh
from tiny_bias_models import bias_model
from tiny_models import logits, tiny_model, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropepatch import patch_model, patched, unpatch_model
from ropepatch.adapters.attention_sites import find_attention
from ropepatch.adapters.profile import measure_modules
from ropepatch.adapters.rotary import find_rotary_modules
from ropepatch.attention.profiles import ScoreProfile
from ropepatch.corpus import load_documents
from ropepatch.corpus.fitting import fitting_text
from ropepatch.description import length_to_fit
from ropepatch.errors import DataError, MethodOptionError
from ropepatch.methods import make_method
from ropepatch.methods.fitting import correlations, fit_bias
from ropepatch.methods.replacement import HeadGeometry

CHECKPOINT = Path(__file__).parents[1] / "recipes/checkpoints/tiny-llama"
GEOMETRY = HeadGeometry(num_heads=2, original_max_position_embeddings=64)
DISTANCES = torch.arange(64)
PAIRS = 64.0 - DISTANCES


def test_correlations_are_sums_over_diagonals_of_the_score_matrix():
    query, key = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 5)
    scores = query.double() @ key.double().transpose(-1, -2)
    by_diagonal = [scores.diagonal(-distance, -2, -1).sum(-1) for distance in range(-6, 7)]
    torch.testing.assert_close(
        correlations(query, key), torch.stack(by_diagonal, -1), atol=1e-12, rtol=1e-12
    )


def test_a_profile_is_the_mean_of_scores_by_distance():
    query, key = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 5)
    profile = ScoreProfile()
    for row in range(2):  # in two calls
        profile.add(query[row : row + 1], key[row : row + 1], 0.5)
    distances, means, pairs = profile.mean(causal=True)
    scores = 0.5 * query.double() @ key.double().transpose(-1, -2)
    assert distances.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert pairs.tolist() == [14, 12, 10, 8, 6, 4, 2]
    for distance in range(7):
        wanted = scores.diagonal(-distance, -2, -1).mean((0, 2))
        torch.testing.assert_close(means[:, distance], wanted)


def test_what_is_measured_are_the_scores_that_stock_attention_computes():
    model, text = tiny_model("llama"), token_ids(3, 32)
    modules = find_attention(model, find_rotary_modules(model), "this")
    before = logits(model, text)
    profiles = measure_modules(model, modules, text)
    assert torch.equal(before, logits(model, text))
    layer, (batch, length) = model.model.layers[0], text.shape
    with torch.no_grad():
        states = layer.input_layernorm(model.model.embed_tokens(text))
        query = layer.self_attn.q_proj(states).view(batch, length, 4, 16).transpose(1, 2).double()
        key = layer.self_attn.k_proj(states).view(batch, length, 2, 16).transpose(1, 2).double()
    angles = torch.arange(32.0).double()[:, None] / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    query, key = (turned(each, angles) for each in (query, key.repeat_interleave(2, 1)))
    scores = query @ key.transpose(-1, -2) / 4
    distances, means, _ = profiles[0].mean(causal=True)
    wanted = [scores.diagonal(-distance, -2, -1).mean((0, 2)) for distance in distances.tolist()]
    torch.testing.assert_close(means, torch.stack(wanted, -1), atol=1e-5, rtol=1e-5)


def turned(states, angles):
    """Llama's rotation: channel i is paired with channel i + 8."""
    first, second = states.chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


@pytest.mark.parametrize(
    ("name", "options", "made", "limit"),
    [
        ("kerple_log", {}, lambda d: -1.5 * torch.log1p(0.3 * d), 1e-4),
        ("kerple_power", {}, lambda d: -0.2 * d**0.7, 1e-4),
        ("alibi", {"slopes": "trainable"}, lambda d: -0.05 * d, 1e-6),
        (
            "t5_bias",
            {"num_buckets": 64, "max_distance": 128},
            lambda d: -torch.sqrt(d.clamp(max=31)),
            0.35,
        ),
    ],
)
def test_a_fit_finds_the_bias_that_a_profile_was_made_by(name, options, made, limit):
    method = make_method(name, **options)
    profile = made(DISTANCES.double()).expand(2, -1) + torch.tensor([[3.0], [-2.0]])
    found = fit_bias(method, GEOMETRY, DISTANCES, profile, PAIRS)
    bias = method.bias(GEOMETRY, DISTANCES.double(), found)
    rest = bias - profile
    near = slice(0, 32)  # where the buckets of T5 hold one distance each
    rest = rest[:, near] - rest[:, near].mean(-1, keepdim=True)
    assert rest.abs().max() < limit


def test_a_fitted_parameter_is_within_its_limits():
    method = make_method("kerple_power")
    rising = DISTANCES.double().expand(2, -1)  # which no penalty can follow
    found = fit_bias(method, GEOMETRY, DISTANCES, rising, PAIRS)
    assert (found["r1"] >= 0.01).all()
    assert ((found["r2"] >= 0.01) & (found["r2"] <= 2)).all()


def test_buckets_beyond_the_text_are_worth_what_the_last_one_is():
    method = make_method("t5_bias")
    geometry = HeadGeometry(num_heads=2, original_max_position_embeddings=24)
    distances = torch.arange(24)
    found = fit_bias(
        method, geometry, distances, -distances.double().expand(2, -1), 24.0 - distances
    )
    far = method.bias(geometry, torch.tensor([23.0, 40.0, 128.0, 4096.0]).double(), found)
    assert torch.equal(far, far[:, :1].expand(-1, 4))
    assert (far < 0).all()


@pytest.fixture(scope="module")
def checkpoint():
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@torch.no_grad()
def held_out_loss(model, text):
    return float(model(input_ids=text, labels=text).loss)


@pytest.mark.parametrize(("per_layer", "gain"), [(False, 0.3), (True, 1.0)])
def test_a_fitted_conversion_of_a_trained_checkpoint_is_closer_to_it(checkpoint, per_layer, gain):
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = fitting_text(load_documents("stdlib", "train"), tokenizer, 256)[:24]
    fitted_on, other = text[:16], text[16:]
    with patched(checkpoint, "t5_bias", 4, per_layer=per_layer):
        without = held_out_loss(checkpoint, other)
    with patched(checkpoint, "t5_bias", 4, per_layer=per_layer, fit="profile", text=fitted_on):
        with_fit = held_out_loss(checkpoint, other)
    assert with_fit < without - gain


def test_a_head_that_tells_only_itself_from_the_others_gets_a_finite_bias():
    profile = torch.where(DISTANCES == 0, 5.0, 0.0).double().expand(2, -1)
    method = make_method("kerple_log")
    found = fit_bias(method, GEOMETRY, DISTANCES, profile, PAIRS)
    assert all(value.isfinite().all() for value in found.values())
    bias = method.bias(GEOMETRY, DISTANCES.double(), found)
    assert bias.isfinite().all()
    assert (bias[:, 0] - bias[:, 1] > 2).all()


def test_scores_that_are_not_finite_are_refused():
    profile = torch.full((2, 64), torch.nan, dtype=torch.float64)
    with pytest.raises(DataError, match="scores of the text are not finite"):
        fit_bias(make_method("kerple_log"), GEOMETRY, DISTANCES, profile, PAIRS)


@pytest.mark.parametrize("kind", ["llama", "bloom", "t5"])
def test_a_view_of_a_longer_text_is_a_text(kind):
    text = token_ids(4, 64)
    fitted = []
    for each in (text[:, :32], text[:, :32].clone()):
        model = patch_model(fresh(kind), "kerple_power", 2, fit="profile", text=each)
        fitted.append([p for name, p in model.named_parameters() if "kerple" in name])
    assert all(map(torch.equal, *fitted))


@pytest.mark.parametrize("kind", ["bloom", "t5"])
def test_biases_of_a_checkpoint_are_fitted_with_the_scores(kind):
    model, text = bias_model(kind), token_ids(4, 32)
    method = "kerple_log"
    patch_model(model, method, 2, fit="profile", text=text)
    fitted = {name: p.clone() for name, p in model.named_parameters() if "kerple" in name}
    unpatch_model(model)
    patch_model(model, method, 2)
    plain = {name: p for name, p in model.named_parameters() if "kerple" in name}
    assert fitted.keys() == plain.keys() != set()
    assert all(value.isfinite().all() for value in fitted.values())
    assert not any(torch.equal(fitted[name], plain[name]) for name in plain)


def test_a_fit_in_the_place_of_other_scaling_reads_what_was_there_before_it():
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    yarn["original_max_position_embeddings"] = 16
    scaled = tiny_model("llama", rope_parameters=yarn)
    patched_before = patch_model(tiny_model("llama"), "yarn", 4)
    for model, trained in ((scaled, 16), (patched_before, 32), (fresh("bloom"), 32)):
        assert length_to_fit(model) == trained
        text = token_ids(2, trained)
        patch_model(model, "kerple_log", 2, fit="profile", text=text, replace=True)


@pytest.mark.parametrize("kind", ["bloom", "t5", "gpt2"])
def test_text_beyond_the_trained_length_is_refused_by_all_models(kind):
    with pytest.raises(DataError, match="cut rows to 32"):
        patch_model(fresh(kind), "kerple_log", 2, fit="profile", text=token_ids(2, 33))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fit": "profile"}, MethodOptionError, "given without text"),
        ({"text": token_ids(1, 8)}, MethodOptionError, "given without fit"),
        ({"fit": "curve", "text": token_ids(1, 8)}, MethodOptionError, "allowed: 'profile'"),
        ({"fit": "profile", "text": "some words"}, DataError, "text is str"),
        ({"fit": "profile", "text": torch.zeros(8)}, DataError, r"shape \(8,\)"),
        ({"fit": "profile", "text": token_ids(3, 1)}, DataError, r"shape \(3, 1\).*at least 2"),
        ({"fit": "profile", "text": token_ids(2, 33)}, DataError, "33 tokens.* 32.*cut rows to 32"),
        (
            {"fit": "profile", "text": torch.tensor([[1, 96]])},
            DataError,
            "tokens from 1 to 96, but the model knows those from 0 to 95",
        ),
        ({"fit": "profile", "text": torch.tensor([[-100, 5]])}, DataError, "from -100 to 5"),
        (
            {"method": "nope", "fit": "profile", "text": token_ids(1, 8)},
            MethodOptionError,
            "no score bias",
        ),
        (
            {"method": "alibi", "fit": "profile", "text": token_ids(1, 8)},
            MethodOptionError,
            "no parameters",
        ),
    ],
)
def test_a_fit_that_cannot_be_is_refused_before_anything_changes(arguments, error, message):
    model = tiny_model("llama")
    before = logits(model, token_ids(1, 16))
    with pytest.raises(error, match=message):
        patch_model(model, **{"method": "kerple_log", "factor": 2, **arguments})
    assert torch.equal(before, logits(model, token_ids(1, 16)))
