"""P-values against tables, enumeration by hand, and the rate of false alarms that they promise."""

import math

import numpy as np
import pytest

from ropepatch.errors import DataError
from ropepatch.evals.significance import holm, mcnemar, p_above, p_higher

#: One tail of the binomial with p = 1/2, from published tables (cumulative, n and at least k).
BINOMIAL = [(5, 0, 1 / 32), (8, 2, 0.0547), (10, 0, 1 / 1024), (9, 1, 0.0107), (15, 5, 0.0207)]


@pytest.mark.parametrize(("gained", "lost", "expected"), BINOMIAL)
def test_mcnemar_is_the_tail_of_a_fair_coin(gained, lost, expected):
    assert mcnemar(gained, lost) == pytest.approx(expected, abs=5e-5)


def test_without_any_change_nothing_was_gained():
    assert mcnemar(0, 0) == 1.0


def test_prompts_that_both_answer_alike_do_not_count():
    before = np.array([0.0] * 9 + [1.0] + [1.0] * 50)
    after = np.array([1.0] * 9 + [0.0] + [1.0] * 50)
    assert p_higher(before, after) == pytest.approx(0.0107, abs=5e-5)
    assert p_higher(after, before) == pytest.approx(1 - 1 / 1024, abs=5e-5)


def test_partial_scores_are_flipped_like_documents():
    # Of the 8 patterns of signs of (0.5, 0.25, 0.25), the sum is at least 1 in one.
    before = np.zeros(3)
    assert p_higher(before, np.array([0.5, 0.25, 0.25])) == 1 / 8


def test_flips_are_counted_by_hand():
    # Sums of ±3 ±2 ±1 that are at least 4: 6 and 4.
    assert p_above(np.array([3.0, 2.0, -1.0]), np.arange(3)) == 2 / 8


def test_whole_documents_are_flipped():
    # Two documents of sums 3 and 2: only one of four patterns reaches 5.
    values = np.array([1.0, 2.0, 1.0, 1.0])
    assert p_above(values, np.array([0, 0, 1, 1])) == 1 / 4


def test_a_bound_is_taken_off_first():
    values = np.array([0.04, 0.05, 0.06, 0.05])
    assert p_above(values, np.arange(4), 0.03) == 1 / 16
    assert p_above(values, np.arange(4), 0.2) == 1.0


def test_equal_losses_show_nothing():
    assert p_above(np.zeros(40), np.arange(40)) == 1.0


def test_a_pattern_that_no_draw_reaches_is_not_impossible():
    # All of 40 documents agree: the one pattern that was found is among the 20 000 drawn and itself.
    assert p_above(np.ones(40), np.arange(40)) == 1 / 20_001


def test_many_documents_agree_with_the_normal_tail():
    values = np.random.default_rng(0).normal(size=200)
    values += 2.0 / math.sqrt(200) - values.mean()
    expected = 0.5 * math.erfc(2.0 / values.std() / math.sqrt(2))
    assert p_above(values, np.arange(200)) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("documents", [4, 8, 20])
def test_false_alarms_stay_below_the_level_with_few_documents(documents):
    # The bootstrap interval of 4 documents excludes 0 in a fifth of such draws.
    rng = np.random.default_rng(documents)
    clusters = np.repeat(np.arange(documents), 3)
    alarms = [
        p_above(rng.normal(size=documents)[clusters] + rng.normal(size=3 * documents), clusters)
        <= 0.05
        for _ in range(400)
    ]
    assert np.mean(alarms) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_that_gives_no_numbers_is_worse_in_every_document(broken):
    assert p_above(np.full(6, broken), np.arange(6)) == 1 / 64


def test_holm_equals_the_steps_by_hand():
    # 4 · 0.01, then the largest of that and 3 · 0.02, then 2 · 0.03, then 0.04 held at 0.06.
    corrected = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert corrected == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert list(corrected) == ["d", "a", "c", "b"]


def test_holm_keeps_one_and_none_as_they_are():
    assert holm({1: 0.2}) == {1: 0.2}
    assert holm({}) == {}
    assert holm({1: 0.7, 2: 0.8}) == {1: 1.0, 2: 1.0}


def test_scores_of_different_prompts_are_not_paired():
    with pytest.raises(DataError, match="cannot be paired"):
        p_higher(np.zeros(3), np.zeros(4))
