"""Intervals against values that were worked out elsewhere."""

import math

import numpy as np
import pytest

from ropepatch.errors import DataError
from ropepatch.evals.statistics import bootstrap_mean, mean_of_tasks, paired_difference, wilson

#: By hand from Wilson's formula with z = 1.959964: (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n)
WILSON = [
    (10, 10, 0.7225, 1.0),
    (8, 10, 0.4902, 0.9433),
    (0, 10, 0.0, 0.2775),
    (45, 50, 0.7864, 0.9565),
    (50, 50, 0.9287, 1.0),
    (428, 500, 0.8225, 0.8841),
]


@pytest.mark.parametrize(("successes", "trials", "low", "high"), WILSON)
def test_wilson_interval_equals_the_formula_by_hand(successes, trials, low, high):
    interval = wilson(successes, trials)
    assert interval.value == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_rate(successes, trials):
    with pytest.raises(DataError, match="no rate"):
        wilson(successes, trials)


def test_identical_inputs_differ_by_exactly_zero_without_width():
    losses = np.random.default_rng(0).normal(size=40)
    interval = paired_difference(losses, losses.copy(), np.arange(40) // 2)
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_constant_shift_is_found_without_width():
    losses = np.random.default_rng(1).normal(size=40)
    interval = paired_difference(losses, losses + 0.25, np.arange(40))
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def test_bootstrap_half_width_equals_the_normal_approximation():
    values = np.random.default_rng(2).normal(size=400)
    interval = bootstrap_mean(values, np.arange(400))
    expected = 1.96 * values.std() / math.sqrt(400)
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.06)


def test_known_difference_is_covered_in_about_95_of_100_draws():
    rng = np.random.default_rng(3)
    covered = 0
    for draw in range(200):
        differences = rng.normal(0.1, 1.0, size=50)
        interval = bootstrap_mean(differences, np.arange(50), seed=draw)
        covered += interval.low <= 0.1 <= interval.high
    assert 180 <= covered <= 199


def test_resampling_documents_is_wider_than_resampling_their_windows():
    rng = np.random.default_rng(4)
    documents = np.repeat(np.arange(20), 5)
    values = rng.normal(size=20)[documents]
    by_document = bootstrap_mean(values, documents)
    by_window = bootstrap_mean(values, np.arange(100))
    ratio = (by_document.high - by_document.low) / (by_window.high - by_window.low)
    # Five equal windows per document carry the information of one: sqrt(5) = 2.24.
    assert ratio == pytest.approx(math.sqrt(5), rel=0.15)


def test_documents_of_unequal_size_are_weighted_by_their_windows():
    interval = bootstrap_mean(np.array([1.0, 1.0, 1.0, 5.0]), np.array([0, 0, 0, 1]))
    # A resample holds document 0 twice, each once, or document 1 twice.
    assert interval.value == 2.0
    assert (interval.low, interval.high) == (1.0, 5.0)


def test_same_seed_gives_the_same_interval():
    values = np.random.default_rng(5).normal(size=30)
    assert bootstrap_mean(values, np.arange(30), seed=7) == bootstrap_mean(
        values, np.arange(30), seed=7
    )


def test_one_document_has_a_mean_but_no_interval():
    interval = bootstrap_mean(np.array([1.0, 3.0]), np.array([0, 0]))
    assert interval.value == 2.0
    assert not interval.bounded


def test_nothing_has_no_mean():
    with pytest.raises(DataError, match="no mean"):
        bootstrap_mean(np.array([]), np.array([], dtype=np.int64))


def test_values_of_different_counts_are_not_paired():
    with pytest.raises(DataError, match="cannot be paired"):
        paired_difference(np.zeros(3), np.zeros(4), np.arange(3))


def test_mean_of_tasks_weighs_every_task_the_same():
    few, many = np.array([1.0, 0.0]), np.ones(100)
    assert mean_of_tasks([few, many]).value == 0.75


def test_spread_of_the_mean_of_tasks_is_that_of_independent_tasks():
    rng = np.random.default_rng(1)
    tasks = [(rng.random(300) < rate).astype(float) for rate in (0.2, 0.5, 0.9)]
    interval = mean_of_tasks(tasks)
    variance = sum(task.var() / 300 for task in tasks) / 9
    half = (interval.high - interval.low) / 2
    assert half == pytest.approx(1.96 * math.sqrt(variance), rel=0.06)


def test_no_tasks_have_no_mean():
    with pytest.raises(DataError, match="have no mean"):
        mean_of_tasks([])


def test_tasks_that_are_all_right_are_not_certain():
    # Jeffreys' posterior of one right answer is Beta(3/2, 1/2), whose share below x = sin²θ is
    # (2θ − sin 2θ)/π: 2.5 % at θ = 0.393.
    one = mean_of_tasks([np.ones(1)])
    assert one.low == pytest.approx(math.sin(0.393) ** 2, rel=0.15)
    # The spread of independent tasks shrinks with the root of their number.
    many = mean_of_tasks([np.ones(4)] * 11)
    assert (many.value, many.high) == (1.0, 1.0)
    assert 0.8 < many.low < 0.95
