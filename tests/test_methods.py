"""Every method against its paper, computed here once more in Python floats."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ropepatch.methods import RotaryGeometry, make_method, rotary_frequencies

DIMS = (8, 32, 64, 128)
BASES = (1e4, 5e5)
LENGTHS = (256, 2048, 8192)
FACTORS = (1, 1.5, 2, 4, 16)
GRID = list(itertools.product(DIMS, BASES, LENGTHS))

YARN_OPTIONS = [
    {},
    {"ramp": "turns"},
    {"truncate": False},
    {"beta_fast": 8.0, "beta_slow": 2.0},
    {"beta_fast": 64, "beta_slow": 0.5, "truncate": False},
    {"ramp": "turns", "beta_fast": 16.0, "beta_slow": 4.0},
]
TEMPERATURE_OPTIONS = [
    {"attention_factor": 1.25},
    {"attention_factor": 0.5},
    {"mscale": 0.707, "mscale_all_dim": 1.0},
    {"mscale": 1.0, "mscale_all_dim": 1.0},
    {"mscale": 0.707},
    {"mscale_all_dim": 0.5},
    {"mscale": 0.0},
]


# The oracles: pair i of a model with rotary dim d, base b, original length L, at factor s.


def base_frequency(i, d, b):
    return math.exp(-2 * i / d * math.log(b))


def linear(i, d, b, L, s):
    return base_frequency(i, d, b) / s


def ntk(i, d, b, L, s, alpha=None):
    # b·α^(d/(d−2)) to the power −2i/d: pair i slows by α^(2i/(d−2)).
    return base_frequency(i, d, b) * math.exp(-2 * i / (d - 2) * math.log(alpha or s))


def base_change(i, d, b, L, s, new_base):
    return base_frequency(i, d, new_base)


def ntk_by_parts(
    i, d, b, L, s, beta_fast=32, beta_slow=1, truncate=True, ramp="index", **temperature
):
    theta = base_frequency(i, d, b)
    if ramp == "turns":
        made = L * theta / (2 * math.pi)
        gamma = (made - beta_slow) / (beta_fast - beta_slow)
    else:
        low, high = (
            d / 2 * math.log(L / (2 * math.pi * beta), b) for beta in (beta_fast, beta_slow)
        )
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d - 1)
        gamma = 1 - (i - low) / (high - low)
    gamma = min(max(gamma, 0), 1)
    return (1 - gamma) * theta / s + gamma * theta


def yarn_temperature(s, attention_factor=None, mscale=1.0, mscale_all_dim=0.0, **bands):
    if s <= 1:
        return 1.0
    warmed = [0.1 * x * math.log(s) + 1 for x in (mscale, mscale_all_dim)]
    return attention_factor or warmed[0] / warmed[1]


def llama3(i, d, b, L, s, low_freq_factor=1, high_freq_factor=4):
    theta = base_frequency(i, d, b)
    wavelength = 2 * math.pi / theta
    if wavelength > L / low_freq_factor:
        return theta / s
    if wavelength < L / high_freq_factor:
        return theta
    smooth = (L / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    return ((1 - smooth) / s + smooth) * theta


def power(i, d, b, L, s, exponent=0.5):
    return base_frequency(i, d, b) * math.pow(1 - 2 * i / d, exponent)


def truncated(i, d, b, L, s, keep_above=1, stop_below=1 / 8, middle=1 / 16):
    theta, turn = base_frequency(i, d, b), 2 * math.pi / L
    if theta >= keep_above * turn:
        return theta
    return middle * turn if theta >= stop_below * turn else 0.0


def proportional(i, d, b, L, s, proportion=0.75):
    return base_frequency(i, d, b) / s if i + 1 <= proportion * d / 2 else 0.0


CASES = [
    (linear, {}),
    (ntk, {}),
    (ntk, {"alpha": 3.0}),
    (ntk, {"alpha": 1.0}),
    (base_change, {"new_base": 5e6}),
    (base_change, {"new_base": 500}),
    *((ntk_by_parts, options) for options in YARN_OPTIONS),
    (llama3, {}),
    (llama3, {"low_freq_factor": 0.5, "high_freq_factor": 16}),
    (power, {}),
    (power, {"exponent": 0.1}),
    (power, {"exponent": 0}),
    (truncated, {}),
    (truncated, {"keep_above": 4.0, "stop_below": 1.0, "middle": 0.5}),
    (proportional, {}),
    (proportional, {"proportion": 0.3}),
    (proportional, {"proportion": 0}),
    (proportional, {"proportion": 1}),
]


def case_name(value):
    return getattr(value, "__name__", None) or (str(value) if isinstance(value, dict) else None)


def vector(values) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def geometry(d=64, b=1e4, L=2048) -> RotaryGeometry:
    return RotaryGeometry(dim=d, base=b, original_max_position_embeddings=L)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(("oracle", "options"), CASES, ids=case_name)
def test_frequencies_are_those_of_the_paper(oracle, options, factor):
    method = make_method(oracle.__name__, factor=factor, **options)
    for d, b, L in GRID:
        expected = vector(oracle(i, d, b, L, factor, **options) for i in range(d // 2))
        assert_equal(method.rotary(geometry(d, b, L)).inv_freq, expected)


@pytest.mark.parametrize("options", [*YARN_OPTIONS, *TEMPERATURE_OPTIONS], ids=str)
@pytest.mark.parametrize("factor", FACTORS)
def test_yarn_frequencies_are_those_of_ntk_by_parts(factor, options):
    method = make_method("yarn", factor=factor, **options)
    for d, b, L in GRID:
        expected = vector(ntk_by_parts(i, d, b, L, factor, **options) for i in range(d // 2))
        assert_equal(method.rotary(geometry(d, b, L)).inv_freq, expected)


@pytest.mark.parametrize("options", [*YARN_OPTIONS, *TEMPERATURE_OPTIONS], ids=str)
@pytest.mark.parametrize("factor", FACTORS)
def test_yarn_attention_factor_is_that_of_the_paper(factor, options):
    found = make_method("yarn", factor=factor, **options).rotary(geometry()).attention_factor
    assert float(found) == pytest.approx(yarn_temperature(factor, **options), rel=1e-12)


@pytest.mark.parametrize(
    "name", ["linear", "llama3", "ntk", "ntk_by_parts", "power", "proportional", "truncated"]
)
def test_other_methods_leave_the_softmax_alone(name):
    assert make_method(name, factor=4).rotary(geometry()).attention_factor == 1.0


def test_the_index_ramp_of_an_original_length_of_6_tokens_is_a_step():
    # 6 tokens are less than a turn of any pair: both ends round to 0, and the ramp must not divide by 0.
    expected = vector(base_frequency(i, 8, 1e4) / (4 if i else 1) for i in range(4))
    assert_equal(make_method("yarn", factor=4).rotary(geometry(8, 1e4, 6)).inv_freq, expected)


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize(
    ("beyond", "used"), [(-200, "short"), (0, "short"), (1, "long"), (70_000, "long")]
)
def test_longrope_divides_by_the_list_of_its_length(d, L, beyond, used):
    lists = {
        "short": [1 + i / 7 for i in range(d // 2)],
        "long": [2.5 + i * i / 3 for i in range(d // 2)],
    }
    method = make_method("longrope", short_factor=lists["short"], long_factor=lists["long"])
    found = method.rotary(geometry(d, 5e5, L), torch.tensor(L + beyond)).inv_freq
    expected = vector(1 / (lists[used][i] * 5e5 ** (2 * i / d)) for i in range(d // 2))
    assert_equal(found, expected)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("given_factor", [None, 1.19])
def test_longrope_attention_factor_is_that_of_the_paper_unless_given(factor, L, given_factor):
    ones = [1.0] * 4
    found = rotary_frequencies(
        "longrope",
        dim=8,
        original_max_position_embeddings=L,
        factor=factor,
        short_factor=ones,
        long_factor=ones,
        attention_factor=given_factor,
    ).attention_factor
    expected = given_factor or math.sqrt(1 + math.log(factor, L))
    assert found == pytest.approx(expected, rel=1e-12)


DYNAMIC = {
    "dynamic_linear": lambda i, d, b, L, s, **options: linear(i, d, b, L, s),
    "dynamic_ntk": lambda i, d, b, L, s, alpha=1.0: ntk(i, d, b, L, s, alpha * s - (alpha - 1)),
    "dynamic_yarn": ntk_by_parts,
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dynamic_linear", {}),
        ("dynamic_ntk", {}),
        ("dynamic_ntk", {"alpha": 4.0}),
        *(("dynamic_yarn", options) for options in YARN_OPTIONS),
    ],
)
def test_dynamic_frequencies_are_those_of_the_paper_at_every_length(name, options):
    method = make_method(name, **options)
    for (d, b, L), stretch in itertools.product(GRID, (0.01, 1, 1.5, 3, 16)):
        T = round(stretch * L)
        found = method.rotary(geometry(d, b, L), torch.tensor(T)).inv_freq
        s = max(1, T / L)
        assert_equal(found, vector(DYNAMIC[name](i, d, b, L, s, **options) for i in range(d // 2)))


@pytest.mark.parametrize("options", [{}, *TEMPERATURE_OPTIONS], ids=str)
@pytest.mark.parametrize("T", [1, 2048, 2049, 6000, 65536])
def test_dynamic_yarn_warms_by_the_length_at_hand(T, options):
    found = make_method("dynamic_yarn", **options).rotary(geometry(), torch.tensor(T))
    expected = yarn_temperature(T / 2048, **options)
    assert float(found.attention_factor) == pytest.approx(expected, rel=1e-12)
