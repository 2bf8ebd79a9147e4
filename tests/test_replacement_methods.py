"""What methods that replace an encoding serve, xPos and no positions, and options that are refused."""

import cmath
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropepatch import alibi_slopes, list_methods, rotary_frequencies
from ropepatch.errors import MethodOptionError, UnsupportedMechanismError
from ropepatch.methods import RotaryGeometry, make_method, methods_for, register_method, registry
from ropepatch.methods.registry import method_class
from ropepatch.methods.replacement import HeadGeometry, Replacement

REPLACING = methods_for(replacing=True)
ANY_MODEL = ["kerple_log", "kerple_power", "nope", "sandwich"]
SERVING = {
    "rotary": [*REPLACING],
    "alibi": sorted([*ANY_MODEL, "t5_bias"]),
    "relative": sorted([*ANY_MODEL, "alibi", "learned"]),
    "absolute": sorted([*ANY_MODEL, "alibi", "scaled_sinusoidal", "sinusoidal", "t5_bias"]),
}


def rotary(dim: int = 64) -> RotaryGeometry:
    return RotaryGeometry(dim=dim, original_max_position_embeddings=256)


def refusal(name: str, **options: object) -> str:
    """The message with which the options are refused."""
    with pytest.raises(MethodOptionError) as refused:
        make_method(name, **options)
    return str(refused.value)


def test_there_are_ten_methods_that_replace():
    assert methods_for(replacing=True) == [
        *("alibi", "kerple_log", "kerple_power", "learned", "nope", "sandwich"),
        *("scaled_sinusoidal", "sinusoidal", "t5_bias", "xpos"),
    ]


@pytest.mark.parametrize("mechanism", SERVING)
def test_each_mechanism_is_replaced_by_what_it_does_not_have_itself(mechanism):
    assert list_methods(mechanism, replacing=True) == SERVING[mechanism]


def test_only_linear_scales_tables_of_positions():
    assert list_methods("absolute", replacing=False) == ["linear"]


@pytest.mark.parametrize("name", REPLACING)
def test_what_replaces_needs_a_fine_tune_and_is_nothing_that_transformers_knows(name):
    assert method_class(name).needs_training
    assert method_class(name).native_rope_type is None


@pytest.mark.parametrize("name", sorted({*REPLACING} - {"xpos"}))
def test_what_replaces_a_rotation_stops_it(name):
    found = rotary_frequencies(name, dim=8, original_max_position_embeddings=256)
    assert found.inv_freq.tolist() == [0.0] * 4
    assert found.attention_factor == 1.0


def test_xpos_keeps_the_rotation():
    assert torch.equal(make_method("xpos").rotary(rotary()).inv_freq, rotary().inv_freq)


@pytest.mark.parametrize("scale_base", [512, 2048, 100.0])
@pytest.mark.parametrize("dim", [2, 16, 64, 128])
def test_the_decay_of_xpos_is_the_logarithm_of_zeta_for_each_token(dim, scale_base):
    found = make_method("xpos", scale_base=scale_base).log_decay(rotary(dim))
    zetas = [(2 * i + 0.4 * dim) / (1.4 * dim) for i in range(dim // 2)]
    expected = torch.tensor([math.log(zeta) / scale_base for zeta in zetas], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@given(n=st.integers(0, 4096), distance=st.integers(0, 4096))
def test_the_product_of_a_query_and_a_key_of_xpos_is_the_rotated_one_times_the_decay(n, distance):
    dim, m = 16, n + distance
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, dim // 2, 2, dtype=torch.float64, generator=generator).tolist()
    method = make_method("xpos")
    decay, inv_freq = method.log_decay(rotary(dim)), method.rotary(rotary(dim)).inv_freq

    # The paper: each side is rotated and scaled by itself, pair by pair.
    naive = 0.0
    for i in range(dim // 2):
        zeta, theta = (2 * i + 0.4 * dim) / (1.4 * dim), 10000 ** (-2 * i / dim)
        q = complex(*query[i]) * cmath.exp(1j * m * theta) * zeta ** (m / 512)
        k = complex(*key[i]) * cmath.exp(1j * n * theta) * zeta ** (-n / 512)
        naive += (q * k.conjugate()).real

    pairs = zip(query, key, strict=True)
    products = torch.tensor(
        [complex(*q) * complex(*k).conjugate() for q, k in pairs], dtype=torch.complex128
    )
    together = (products * torch.exp(distance * torch.complex(decay, inv_freq))).real.sum()
    assert float(together) == pytest.approx(naive, rel=0, abs=1e-10)


@pytest.mark.parametrize("name", SERVING["alibi"])
def test_what_replaces_slopes_does_not_rescale_them(name):
    with pytest.raises(UnsupportedMechanismError) as refused:
        alibi_slopes(8, name)
    assert str(refused.value) == (
        f"{name!r} replaces, and does not rescale, ALiBi; methods that rescale: dynamic_linear, "
        "linear, ntk; methods that replace: kerple_log, kerple_power, nope, sandwich, t5_bias"
    )


@pytest.mark.parametrize(
    ("name", "mechanism", "message"),
    [
        ("xpos", "relative", "'xpos' does not replace relative buckets; methods that rescale: lin"),
        ("learned", "absolute", "'learned' does not replace tables of positions; methods that res"),
        ("alibi", "alibi", "'alibi' does not replace ALiBi; methods that rescale: dynamic_linear"),
        (
            "yarn",
            "absolute",
            "'yarn' does not rescale tables of positions; methods that rescale: l",
        ),
    ],
)
def test_the_error_of_a_mechanism_that_is_not_served_says_replace_or_rescale(
    name, mechanism, message
):
    said = str(method_class(name).unsupported(mechanism))
    assert said.startswith(message)
    assert said.endswith(f"; methods that replace: {', '.join(SERVING[mechanism])}")


def test_an_own_replacement_of_tables_only_is_not_for_rotary_models(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register_method("tables_only")
    @dataclass(frozen=True, kw_only=True)
    class TablesOnly(Replacement):
        replaces: ClassVar[tuple[str, ...]] = ("absolute",)

    assert "tables_only" not in methods_for("rotary")
    with pytest.raises(UnsupportedMechanismError, match="'tables_only' does not replace rotary"):
        make_method("tables_only").rotary(rotary())


SEEDS = pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", True, None], ids=repr)


@SEEDS
@pytest.mark.parametrize("name", ["alibi", "kerple_log", "kerple_power", "learned"])
def test_a_seed_that_is_no_whole_number_is_refused(name, seed):
    assert (
        refusal(name, seed=seed) == f"seed is {seed!r}; allowed: a whole number from 0 to 2^63 − 1"
    )


@pytest.mark.parametrize("per_layer", [0, 1, "yes", None], ids=repr)
@pytest.mark.parametrize("name", ["alibi", "kerple_log", "kerple_power", "sandwich", "t5_bias"])
def test_what_is_no_yes_or_no_is_refused_for_every_bias(name, per_layer):
    assert (
        refusal(name, per_layer=per_layer) == f"per_layer is {per_layer!r}; allowed: True or False"
    )


@pytest.mark.parametrize("dim", [0, 1, 127, -2, 128.0, "128", True, None], ids=repr)
def test_sandwich_refuses_what_is_no_even_number_of_channels(dim):
    assert refusal("sandwich", dim=dim) == (
        f"dim is {dim!r}; allowed: an even number of channels, at least 2"
    )


@pytest.mark.parametrize("scale_base", [0, -512, math.nan, math.inf, "512", True, None], ids=repr)
def test_xpos_refuses_what_is_no_number_of_tokens(scale_base):
    expected = f"scale_base is {scale_base!r}; allowed: a finite number > 0"
    assert refusal("xpos", scale_base=scale_base) == expected


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("alibi", "slopes", "even", "'geometric', 'trainable' or 'random'"),
        ("alibi", "slopes", None, "'geometric', 'trainable' or 'random'"),
        ("alibi", "slopes", [0.5, 0.25], "'geometric', 'trainable' or 'random'"),
        ("alibi", "directions", "both", "'symmetric' or 'split'"),
        ("alibi", "directions", True, "'symmetric' or 'split'"),
        ("t5_bias", "num_buckets", 1, "a whole number of buckets, at least 2"),
        ("t5_bias", "num_buckets", 32.0, "a whole number of buckets, at least 2"),
        ("t5_bias", "max_distance", 16, "a whole number of tokens, at least 17"),
        ("t5_bias", "max_distance", None, "a whole number of tokens, at least 17"),
    ],
)
def test_an_option_out_of_bounds_is_refused_with_what_is_allowed(name, option, value, message):
    assert refusal(name, **{option: value}) == f"{option} is {value!r}; allowed: {message}"


def test_an_odd_number_of_buckets_is_refused_where_two_directions_share_them():
    both, past = (
        HeadGeometry(num_heads=2, bidirectional=way, original_max_position_embeddings=256)
        for way in (True, False)
    )
    method = make_method("t5_bias", num_buckets=33)
    assert method.initial(past)["weight"].shape == (33, 2)
    with pytest.raises(MethodOptionError, match=r"^num_buckets is 33; allowed: an even number"):
        method.initial(both)


@pytest.mark.parametrize("option", ["num_heads", "num_layers"])
@pytest.mark.parametrize("count", [0, 2.0, True], ids=repr)
def test_what_is_no_number_of_heads_or_layers_is_refused(option, count):
    shape = {"num_heads": 2, "original_max_position_embeddings": 256, option: count}
    with pytest.raises(MethodOptionError) as refused:
        HeadGeometry(**shape)
    assert str(refused.value).startswith(f"{option} is {count!r}; allowed: a whole number of")
