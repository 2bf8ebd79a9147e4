"""The maths of positions against loops over Python floats, and the properties the papers rest on."""

import cmath
import math
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ropepatch.positions import (
    blend,
    decay_bound,
    inverse_frequencies,
    linear_ramp,
    ntk_base,
    pair_with_turns,
    rotary_coherence,
    turns,
)

DIMS = (2, 8, 32, 64, 128)
BASES = (1e4, 5e5)

dims = st.integers(1, 64).map(lambda pairs: 2 * pairs)
bases = st.floats(100.0, 1e8)
positions = st.integers(0, 100_000)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dim", DIMS)
def test_inverse_frequencies_are_the_base_to_the_minus_2i_over_d(dim, base):
    expected = vector(*(math.exp(-2 * i / dim * math.log(base)) for i in range(dim // 2)))
    torch.testing.assert_close(inverse_frequencies(dim, base), expected, rtol=1e-12, atol=0)


def test_inverse_frequencies_of_two_pairs_by_hand():
    assert inverse_frequencies(4, 10_000.0).tolist() == [1.0, 0.01]


@given(dim=dims, base=bases)
def test_inverse_frequencies_are_the_reciprocal_of_a_positive_power_to_the_bit(dim, base):
    exponent = torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float64) / dim
    assert torch.equal(inverse_frequencies(dim, base), 1.0 / (base**exponent))


def test_inverse_frequencies_of_a_batch_of_bases_equal_those_of_each():
    batch = torch.tensor([[1e4], [5e5], [1e6]], dtype=torch.float64)
    each = torch.stack([inverse_frequencies(64, base) for base in batch.flatten().tolist()])
    assert torch.equal(inverse_frequencies(64, batch), each)


@given(dim=dims, base=bases, length=st.integers(1, 10**6))
def test_turns_are_the_length_over_the_wavelength(dim, base, length):
    wavelengths = [2 * math.pi * base ** (2 * i / dim) for i in range(dim // 2)]
    expected = vector(*(length / wavelength for wavelength in wavelengths))
    found = turns(inverse_frequencies(dim, base), length)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@given(
    dim=dims,
    base=bases,
    length=st.integers(1, 10**6),
    rotations=st.floats(0.01, 1000.0),
)
def test_the_pair_with_so_many_turns_makes_them(dim, base, length, rotations):
    pair = pair_with_turns(rotations, dim=dim, base=base, length=length)
    made = length * base ** (-2 * pair / dim) / (2 * math.pi)
    assert made == pytest.approx(rotations, rel=1e-9)


def test_llama_2_keeps_20_pairs_and_interpolates_from_pair_46():
    # YaRN on Llama 2 (d = 128, b = 1e4, L = 4096): β = 32 lies at pair 20.94, β = 1 at 45.03.
    fast, slow = (
        pair_with_turns(beta, dim=128, base=10_000.0, length=4096) for beta in (32.0, 1.0)
    )
    assert (math.floor(fast), math.ceil(slow)) == (20, 46)


def test_linear_ramp_is_0_before_1_after_and_straight_between():
    ramp = linear_ramp(vector(-1, 2, 3, 4, 6, 9), low=2, high=6)
    assert ramp.tolist() == [0, 0, 0.25, 0.5, 1, 1]


def test_blend_takes_each_side_in_the_proportion_asked_for():
    found = blend(vector(8, 8, 8, 8), vector(2, 2, 2, 2), vector(0, 0.25, 0.5, 1))
    assert found.tolist() == [2, 3.5, 5, 8]


@given(value=st.floats(1e-9, 1.0), keep=st.floats(0.0, 1.0))
def test_blend_of_equal_frequencies_is_that_frequency_to_the_bit(value, keep):
    assert blend(vector(value), vector(value), vector(keep)).item() == value


@given(kept=st.floats(1e-9, 1.0), interpolated=st.floats(1e-9, 1.0))
def test_blend_ends_at_its_sides_to_the_bit(kept, interpolated):
    both = vector(kept).expand(2), vector(interpolated).expand(2)
    assert blend(*both, vector(1.0, 0.0)).tolist() == [kept, interpolated]


@given(dim=st.integers(2, 64).map(lambda pairs: 2 * pairs), base=bases, alpha=st.floats(1.0, 64.0))
def test_ntk_base_slows_the_last_pair_alpha_times(dim, base, alpha):
    last = (dim - 2) / dim
    slowed = ntk_base(base, alpha, dim) ** -last
    assert base**-last / slowed == pytest.approx(alpha, rel=1e-12)


def test_rotary_coherence_is_the_sum_of_the_cosines():
    theta = [1.0, 0.1, 0.01]
    expected = vector(*(sum(math.cos(distance * t) for t in theta) for distance in (0, 7, 4096)))
    found = rotary_coherence(vector(*theta), torch.tensor([0, 7, 4096]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def rotated(vector: list[complex], position: int, theta: list[float]) -> list[complex]:
    """Pair i turned by position·θ_i, a pair of channels as one complex number."""
    return [z * cmath.exp(1j * position * t) for z, t in zip(vector, theta, strict=True)]


def score(query: list[complex], key: list[complex]) -> float:
    return sum((q * k.conjugate()).real for q, k in zip(query, key, strict=True))


channels = st.complex_numbers(max_magnitude=10.0, allow_nan=False, allow_infinity=False)
heads = st.lists(channels, min_size=8, max_size=8)


@given(query=heads, position=positions)
def test_rotation_preserves_the_norm(query, position):
    turned = rotated(query, position, inverse_frequencies(16, 1e4).tolist())
    assert math.hypot(*map(abs, turned)) == pytest.approx(math.hypot(*map(abs, query)), abs=1e-12)


@given(query=heads, key=heads, key_at=positions, distance=st.integers(0, 4096), shift=positions)
def test_scores_depend_on_the_distance_alone(query, key, key_at, distance, shift):
    theta = inverse_frequencies(16, 1e4).tolist()
    here, there = (
        score(rotated(query, at + distance, theta), rotated(key, at, theta))
        for at in (key_at, key_at + shift)
    )
    # Angles of up to 2e5 rad carry 1.5e-11 of rounding each; scores are at most 800.
    assert there == pytest.approx(here, abs=1e-6)


def naive_decay(theta: list[float], distance: float) -> float:
    """The bound of arXiv 2104.09864, §3.4.3, on scores at a distance: the mean of |partial sums|."""
    phases = [cmath.exp(1j * distance * t) for t in theta]
    return sum(map(abs, accumulate(phases))) / len(theta)


def decay(*distances: float) -> list[float]:
    return decay_bound(inverse_frequencies(128, 1e4), torch.tensor(distances)).tolist()


def test_the_decay_bound_starts_at_the_mean_of_1_to_64():
    assert decay(0) == [32.5]


@given(dim=dims, base=bases, distance=positions)
def test_the_decay_bound_is_the_mean_of_the_partial_sums(dim, base, distance):
    theta = inverse_frequencies(dim, base)
    found = decay_bound(theta, torch.tensor([distance])).item()
    assert found == pytest.approx(naive_decay(theta.tolist(), distance), rel=1e-9)


def test_the_decay_bound_of_xpos_fades_every_term():
    theta, log_decay = [1.0, 0.1, 0.01], [-0.3, -0.02, -0.001]
    terms = [cmath.exp(7 * (1j * t + decay)) for t, decay in zip(theta, log_decay, strict=True)]
    expected = sum(map(abs, accumulate(terms))) / 3
    found = decay_bound(vector(*theta), torch.tensor([7]), vector(*log_decay)).item()
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_decay_bound_falls_to_less_than_a_third_over_the_trained_length():
    assert max(decay(*range(1024, 4096, 64))) < 32.5 / 3


def test_the_decay_bound_is_not_monotone():
    falling = decay(*range(2048, 4001, 64))
    assert any(later > earlier for earlier, later in pairwise(falling))
