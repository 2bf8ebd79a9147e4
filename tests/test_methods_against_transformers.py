"""Wherever transformers has a method too, both agree to float32 rounding."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ropepatch.methods import RotaryFrequencies, RotaryGeometry, make_method, rotary_frequencies

GEOMETRIES = [
    pytest.param(
        RotaryGeometry(dim=d, base=b, original_max_position_embeddings=L), id=f"{d}-{b:g}-{L}"
    )
    for d, b, L in [
        (8, 1e4, 256),
        (64, 1e4, 2048),
        (64, 5e5, 8192),
        (128, 1e4, 4096),
        (128, 5e5, 8192),
    ]
]
ROUNDING = 2e-6  # float32: 6e-8 in the exponent, times ln(5e5) = 13, and a few operations more


def config(geometry: RotaryGeometry, **rope_parameters) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=geometry.dim,
        head_dim=geometry.dim,
        num_attention_heads=1,
        max_position_embeddings=geometry.original_max_position_embeddings,
        rope_parameters={"rope_theta": geometry.base, **rope_parameters},
    )


def theirs(geometry, rope_type, seq_len=None, **parameters):
    """(inv_freq, attention_factor) by transformers' own function."""
    with_length = {"original_max_position_embeddings": geometry.original_max_position_embeddings}
    own = {} if rope_type in ("linear", "dynamic", "proportional") else with_length
    described = config(geometry, rope_type=rope_type, **own, **parameters)
    return ROPE_INIT_FUNCTIONS[rope_type](described, device="cpu", seq_len=seq_len)


def assert_agree(ours: RotaryFrequencies, inv_freq: torch.Tensor, attention_factor: float) -> None:
    torch.testing.assert_close(ours.inv_freq, inv_freq.double(), rtol=ROUNDING, atol=0)
    assert float(ours.attention_factor) == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0, 16.0])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {}),
        ("yarn", {}),
        ("yarn", {"truncate": False}),
        ("yarn", {"beta_fast": 8.0, "beta_slow": 2.0}),
        ("yarn", {"mscale": 0.707, "mscale_all_dim": 1.0}),
        ("yarn", {"mscale": 1.0, "mscale_all_dim": 1.0}),
        ("llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("llama3", {"low_freq_factor": 2.0, "high_freq_factor": 16.0}),
    ],
)
def test_static_methods_agree_with_transformers(name, options, factor, geometry):
    ours = make_method(name, factor=factor, **options).rotary(geometry)
    assert_agree(ours, *theirs(geometry, name, factor=factor, **options))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_given_attention_factor_of_yarn_agrees_with_transformers(geometry):
    options = {"factor": 4.0, "attention_factor": 1.4}
    ours = make_method("yarn", **options).rotary(geometry)
    assert_agree(ours, *theirs(geometry, "yarn", **options))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("proportion", [0.0, 0.3, 0.5, 1.0])
def test_proportional_agrees_with_transformers(proportion, geometry):
    ours = make_method("proportional", factor=2.0, proportion=proportion).rotary(geometry)
    parameters = {"factor": 2.0, "partial_rotary_factor": proportion}
    assert_agree(ours, *theirs(geometry, "proportional", **parameters))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("stretch", [0.5, 1, 1.5, 4])
def test_the_alpha_of_dynamic_ntk_is_the_factor_of_transformers(stretch, alpha, geometry):
    seq_len = round(stretch * geometry.original_max_position_embeddings)
    ours = make_method("dynamic_ntk", alpha=alpha).rotary(geometry, torch.tensor(seq_len))
    assert_agree(ours, *theirs(geometry, "dynamic", seq_len=seq_len, factor=alpha))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("attention_factor", [None, 1.3])
@pytest.mark.parametrize("beyond", [-5, 0, 1, 1000], ids=lambda tokens: f"L{tokens:+}")
def test_longrope_agrees_with_transformers_on_both_sides_of_the_boundary(
    beyond, attention_factor, geometry
):
    pairs = geometry.dim // 2
    options = {
        "factor": 8.0,
        "short_factor": [1 + i / 50 for i in range(pairs)],
        "long_factor": [1 + i * i / 20 for i in range(pairs)],
        "attention_factor": attention_factor,
    }
    seq_len = geometry.original_max_position_embeddings + beyond
    ours = make_method("longrope", **options).rotary(geometry, torch.tensor(seq_len))
    assert_agree(ours, *theirs(geometry, "longrope", seq_len=seq_len, **options))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {}),
        ("ntk", {}),
        ("ntk", {"alpha": 6.0}),
        ("base_change", {"new_base": 1e6}),
        ("llama3", {"high_freq_factor": 8.0}),
        ("yarn", {}),
        ("yarn", {"truncate": False, "beta_fast": 16.0}),
        ("yarn", {"attention_factor": 1.1}),
        ("yarn", {"mscale": 0.7}),
        ("yarn", {"mscale_all_dim": 0.7}),
        ("yarn", {"mscale": 0.7, "mscale_all_dim": 0.5}),
    ],
)
def test_native_parameters_give_a_llama_the_frequencies_of_the_method(name, options, geometry):
    method = make_method(name, factor=4.0, **options)
    llama = LlamaRotaryEmbedding(config(geometry, **method.native(geometry)))
    assert_agree(method.rotary(geometry), llama.inv_freq, llama.attention_scaling)


def test_the_paper_ramp_of_yarn_has_no_native_form():
    geometry = RotaryGeometry(dim=64, original_max_position_embeddings=2048)
    assert make_method("yarn", factor=4, ramp="turns").native(geometry) is None


@pytest.mark.parametrize("base", [1e4, 5e5])
def test_unscaled_frequencies_agree_with_a_llama(base):
    geometry = RotaryGeometry(dim=64, base=base, original_max_position_embeddings=2048)
    ours = rotary_frequencies("linear", dim=64, base=base, original_max_position_embeddings=2048)
    llama = LlamaRotaryEmbedding(config(geometry, rope_type="default"))
    assert_agree(ours, llama.inv_freq, llama.attention_scaling)
