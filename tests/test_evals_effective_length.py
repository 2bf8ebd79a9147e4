"""Effective lengths by hand, their intervals, and models that use no context."""

from dataclasses import replace

import numpy as np
import pytest
from made_evaluations import LENGTHS, made_evaluation, made_scores

from ropepatch.evals.context_use import unused_context
from ropepatch.evals.effective_length import absolute_length, relative_length


def model(*rates, chance=0.0, prompts=200, **changes):
    """Exactly these shares of right answers by length."""
    tasks = {
        "kv": {
            length: made_scores(np.arange(prompts) < rate * prompts, length, chance)
            for length, rate in zip(LENGTHS, rates, strict=True)
        }
    }
    return (
        made_evaluation(**{"tasks": ("kv",), **changes})
        if not rates
        else replace(made_evaluation(**changes), tasks=tasks)
    )


@pytest.mark.parametrize(
    ("rates", "relative", "absolute"),
    [
        ((1.0, 1.0, 1.0, 1.0), 1024, 1024),
        ((1.0, 1.0, 0.9, 0.5), 512, 512),
        # 85 % of 0.6 is 0.51.
        ((0.6, 0.6, 0.52, 0.5), 512, 0),
        # A length behind one that fails does not count.
        ((1.0, 1.0, 0.5, 1.0), 256, 256),
        # 85 % of the mean of 1.0 and 0.7 is 0.7225: the second length fails already.
        ((1.0, 0.7, 0.9, 0.9), 128, 128),
        ((0.86, 0.86, 0.855, 0.855), 1024, 256),
    ],
)
def test_lengths_by_hand(rates, relative, absolute):
    assert relative_length(model(*rates)).value == relative
    assert absolute_length(model(*rates)).value == absolute


def test_scores_count_from_chance():
    # (0.9 − 0.5)/(1 − 0.5) = 0.8, of which 85 % are 0.68; 0.8 right is 0.6 above chance.
    evaluation = model(0.9, 0.9, 0.8, 0.8, chance=0.5)
    found = relative_length(evaluation)
    assert found.value == 256
    assert found.threshold == pytest.approx(0.68)


def test_interval_holds_the_lengths_that_other_prompts_might_have_given():
    clear = relative_length(model(1.0, 1.0, 1.0, 0.1))
    assert (clear.low, clear.high) == (512, 512)
    # Of 20 prompts 17 pass by a hair.
    close = relative_length(model(1.0, 1.0, 0.85, 0.1, prompts=20))
    assert (close.value, close.low, close.high) == (512, 256, 512)


def test_a_few_right_answers_are_not_certain():
    few = absolute_length(model(1.0, 1.0, 1.0, 1.0, prompts=4))
    assert few.value == 1024
    assert few.low < 256


def test_interval_covers_the_true_length_in_about_95_of_100_draws():
    # The truth is 512: there 0.8 ≥ 0.85 · 0.9, at 1024 0.6 is not.
    covered = 0
    for seed in range(100):
        found = relative_length(
            made_evaluation(rates=(0.9, 0.9, 0.8, 0.6), seed=seed, prompts=200, chance=0.0)
        )
        covered += found.low <= 512 <= found.high
    assert covered >= 93


def test_guessing_on_short_inputs_makes_it_not_measurable():
    found = relative_length(model(0.15, 0.1, 0.1, 0.1, chance=0.125))
    assert found.value is None
    assert "no better than guessing" in found.reason
    assert absolute_length(model(0.15, 0.1, 0.1, 0.1, chance=0.125)).value == 0


def test_without_tasks_the_reason_is_said():
    configuration = {"not_asked": {"kv": "the tokenizer reserves 0 keys"}}
    found = relative_length(made_evaluation(tasks=(), configuration=configuration))
    assert (found.value, found.reason) == (None, "the tokenizer reserves 0 keys")


def test_a_task_that_is_missing_at_a_length_is_left_out():
    evaluation = model(1.0, 1.0, 1.0, 1.0)
    partial = {512: made_scores(np.zeros(50), 512, 0.0)}
    found = relative_length(replace(evaluation, tasks={**evaluation.tasks, "vt": partial}))
    assert (found.value, found.tasks) == (1024, ("kv",))


def test_a_flat_loss_and_nothing_found_is_no_use_of_context():
    flat = model(0.9, 0.12, 0.12, 0.12, chance=0.125, noise=0.0)
    found = unused_context(flat)
    assert found.length == 128
    assert str(found) == "uses no context beyond 128 tokens"
    assert found.gain.value == pytest.approx(0.0, abs=1e-6)


def test_a_flat_loss_with_needles_found_far_away_is_use_of_context():
    assert unused_context(model(1.0, 1.0, 1.0, 1.0, chance=0.125, noise=0.0)) is None


@pytest.mark.parametrize("loss", [-0.02, 0.02])
def test_a_loss_that_changes_is_not_flat(loss):
    changing = model(
        0.1, 0.1, 0.1, 0.1, chance=0.125, noise=0.0, losses=(3 * loss, 2 * loss, loss, 0.0)
    )
    assert unused_context(changing) is None


def test_a_loss_that_may_change_is_not_flat():
    noisy = model(0.1, 0.1, 0.1, 0.1, chance=0.125, noise=0.05)
    assert unused_context(noisy) is None


def test_without_needles_the_flag_says_so():
    found = unused_context(made_evaluation(tasks=(), noise=0.0))
    assert str(found) == "uses no context beyond 128 tokens (no needle was asked for further away)"
