"""Scores between and past the positions of training: against loops, and what the paper claims."""

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropepatch.interpolation import (
    extrapolation_bound,
    fit_scores,
    interpolation_bound,
    scores,
)
from ropepatch.positions import inverse_frequencies

THETA = [10_000.0 ** (-2 * j / 16) for j in range(8)]
H = [complex(math.sin(3 * j + 1), math.cos(5 * j)) for j in range(8)]
coefficients = st.lists(
    st.complex_numbers(max_magnitude=10.0, allow_nan=False, allow_infinity=False),
    min_size=8,
    max_size=8,
)


def vector(values):
    return torch.tensor(values, dtype=torch.complex128)


def points(*values):
    return torch.tensor(values, dtype=torch.float64)


def score(h, distance):
    turned = (c * cmath.exp(1j * distance * theta) for c, theta in zip(h, THETA, strict=True))
    return sum(z.real for z in turned)


def theta():
    return inverse_frequencies(16, 10_000.0)


def test_scores_are_the_real_parts_of_turned_coefficients():
    at = (0.0, 1.0, 2.5, 100.0)
    expected = points(*(score(H, distance) for distance in at))
    torch.testing.assert_close(scores(vector(H), theta(), points(*at)), expected)


def test_the_interpolation_bound_is_that_of_a_loop():
    at = (7.25, 30.5, 31.0)
    largest = max(map(abs, H))
    curvature = sum(t * t for t in THETA)
    expected = [largest * curvature * (s - math.floor(s)) * (math.floor(s) + 1 - s) / 2 for s in at]
    found = interpolation_bound(vector(H), theta(), points(*at))
    torch.testing.assert_close(found, points(*expected))


def test_the_interpolation_bound_is_the_published_one_but_for_its_sum():
    # Theorem 2.1 of arXiv 2306.15595: d·max|h|·(s−s1)(s2−s)/(8 ln c); the sum of θ² it stands for is
    # 1/(1 − e^−x) = 1/x + 1/2 + x/12 …, x = 4 ln c / d, and not 1/x.
    x = 4 * math.log(10_000) / 128
    published = 128 * 0.25 / (8 * math.log(10_000))
    ones = torch.ones(64, dtype=torch.complex128)
    found = interpolation_bound(ones, inverse_frequencies(128, 10_000.0), points(0.5)).item()
    assert found / published == pytest.approx(1 + x / 2 + x * x / 12, rel=1e-4)


def test_equal_coefficients_pass_the_published_bound_and_not_ours():
    thetas = [10_000.0 ** (-2 * j / 128) for j in range(64)]
    middle = sum(map(math.cos, (t / 2 for t in thetas)))
    departure = middle - (64 + sum(map(math.cos, thetas))) / 2
    assert departure > 128 * 0.25 / (8 * math.log(10_000))
    ones = torch.ones(64, dtype=torch.complex128)
    bound = interpolation_bound(ones, inverse_frequencies(128, 10_000.0), points(0.5))
    assert departure < bound.item()


@given(h=coefficients, distance=st.floats(0.0, 5000.0))
def test_scores_between_whole_distances_keep_to_the_interpolation_bound(h, distance):
    before = math.floor(distance)
    share = distance - before
    straight = (1 - share) * score(h, before) + share * score(h, before + 1)
    bound = interpolation_bound(vector(h), theta(), points(distance)).item()
    assert abs(score(h, distance) - straight) <= bound + 1e-9


def test_the_extrapolation_bound_is_that_of_a_loop():
    steps = [abs(later - earlier) for earlier, later in zip(H, [*H[1:], 0], strict=True)]
    expected = []
    for distance in (0, 3, 4096):
        partial, total = 0j, 0.0
        for t in THETA:
            partial += cmath.exp(1j * distance * t)
            total += abs(partial)
        expected.append(max(steps) * total)
    found = extrapolation_bound(vector(H), theta(), points(0, 3, 4096))
    torch.testing.assert_close(found, points(*expected))


@given(h=coefficients, distance=st.floats(0.0, 100_000.0))
def test_no_score_passes_the_extrapolation_bound(h, distance):
    bound = extrapolation_bound(vector(h), theta(), points(distance)).item()
    assert abs(score(h, distance)) <= bound + 1e-9


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("dim", "length"), [(128, 2048), (32, 256)])
def test_a_fit_explodes_past_its_length_and_not_between_its_positions(dim, length, seed):
    inv_freq = inverse_frequencies(dim, 10_000.0)
    fitted = fit_scores(inv_freq, length, seed=seed)
    whole = torch.arange(length)
    within, between, beyond = (
        scores(fitted, inv_freq, at).abs().max().item()
        for at in (whole, whole[:-1] + 0.5, whole + length)
    )
    assert within < 3  # random scores are of size 1
    assert between < 1.2 * within
    assert beyond > 1000 * within


def test_a_fit_finds_scores_that_rotations_can_make():
    # Of two pairs and more than four positions: the residual is orthogonal to all their waves.
    inv_freq = inverse_frequencies(4, 100.0)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(50, generator=generator)
    wanted = torch.randn(50, generator=generator, dtype=torch.float64)
    residual = wanted - scores(fit_scores(inv_freq, 50), inv_freq, order)
    for t in inv_freq.tolist():
        for wave in (torch.cos(t * order), torch.sin(t * order)):
            assert abs((residual * wave.double()).sum().item()) < 1e-4
