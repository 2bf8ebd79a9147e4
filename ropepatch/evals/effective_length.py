"""How long an input may be before a model answers worse than it should, with an interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.statistics import RESAMPLES, TAILS, Floats, drawn_means

RELATIVE = 0.85  #: of the model's own score on short inputs (NoLiMa, arXiv 2502.05167)
ABSOLUTE = 0.856  #: what RULER asks for (arXiv 2404.06654): Llama-2-7B-chat at 4096 tokens


@dataclass(frozen=True)
class EffectiveLength:
    """The longest measured length up to which every one passes, 0 for none; all in tokens."""

    value: int | None  #: None where it cannot be measured
    low: int
    high: int
    longest: int  #: that was measured: a value as long as this is a lower bound
    threshold: float  #: mean score to reach; scores are 0 at chance and 1 at best
    tasks: tuple[str, ...]  #: that the mean is of: those asked at every length
    reason: str | None = None  #: why it cannot be measured


def relative_length(evaluation: Evaluation) -> EffectiveLength:
    """Up to where the model keeps 85 % of its mean score at the lengths that it was trained to."""
    lengths, tasks = evaluation.lengths, _tasks(evaluation)
    if not tasks:
        return _unmeasured(evaluation, _without_tasks(evaluation))
    within = [n for n in lengths if n <= evaluation.trained_length] or [lengths[0]]
    columns = [lengths.index(length) for length in within]
    draws = _drawn_scores(evaluation, tasks)
    means = _mean_scores(evaluation, tasks)
    if np.quantile(draws[:, columns].mean(axis=1), TAILS[0]) <= 0:
        shown = ", ".join(map(str, within))
        return _unmeasured(
            evaluation,
            f"in {shown} tokens, {' and '.join(tasks)} score no better than guessing "
            f"({means[columns].mean():.2f} of 1 above chance), so there is nothing to keep",
        )
    return _passed(
        evaluation,
        tasks,
        RELATIVE * float(means[columns].mean()),
        means >= RELATIVE * means[columns].mean() - 1e-9,
        draws >= RELATIVE * draws[:, columns].mean(axis=1, keepdims=True),
    )


def absolute_length(evaluation: Evaluation) -> EffectiveLength:
    """Up to where the model's mean score is at least RULER's 85.6 %."""
    tasks = _tasks(evaluation)
    if not tasks:
        return _unmeasured(evaluation, _without_tasks(evaluation))
    return _passed(
        evaluation,
        tasks,
        ABSOLUTE,
        _mean_scores(evaluation, tasks) >= ABSOLUTE,
        _drawn_scores(evaluation, tasks) >= ABSOLUTE,
    )


def _passed(
    evaluation: Evaluation,
    tasks: tuple[str, ...],
    threshold: float,
    found: NDArray[np.bool_],  # (lengths,)
    drawn: NDArray[np.bool_],  # (RESAMPLES, lengths)
) -> EffectiveLength:
    # No length counts behind one that fails: a long input has to be safe up to its end.
    steps = np.array([0, *evaluation.lengths])
    reached = steps[np.logical_and.accumulate(drawn, axis=1).sum(axis=1)]
    low, high = np.quantile(reached, TAILS, method="inverted_cdf")
    return EffectiveLength(
        value=int(steps[np.logical_and.accumulate(found).sum()]),
        low=int(low),
        high=int(high),
        longest=evaluation.lengths[-1],
        threshold=threshold,
        tasks=tasks,
    )


def _unmeasured(evaluation: Evaluation, reason: str) -> EffectiveLength:
    return EffectiveLength(None, 0, 0, evaluation.lengths[-1], 0.0, _tasks(evaluation), reason)


def _tasks(evaluation: Evaluation) -> tuple[str, ...]:
    asked = evaluation.tasks.items()
    return tuple(task for task, found in asked if set(evaluation.lengths) <= set(found))


def _without_tasks(evaluation: Evaluation) -> str:
    return "; ".join(evaluation.not_asked.values()) or "no task was asked at every length"


def _mean_scores(evaluation: Evaluation, tasks: tuple[str, ...]) -> Floats:
    """By length, the mean over tasks of how far scores are above chance, (lengths,)."""
    asked = [[evaluation.tasks[task][n] for n in evaluation.lengths] for task in tasks]
    scores = [[_above_chance(each.scores.mean(), each.chance) for each in row] for row in asked]
    means: Floats = np.mean(scores, axis=0)
    return means


def _drawn_scores(evaluation: Evaluation, tasks: tuple[str, ...]) -> Floats:
    """What they might have been with other prompts, (RESAMPLES, lengths)."""
    total = np.zeros((RESAMPLES, len(evaluation.lengths)))
    for number, task in enumerate(tasks):
        for column, length in enumerate(evaluation.lengths):
            asked = evaluation.tasks[task][length]
            drawn = drawn_means(asked.scores, (evaluation.seed, number, column))
            total[:, column] += _above_chance(drawn, asked.chance)
    return total / len(tasks)


def _above_chance(means: Floats, chance: float) -> Floats:
    """Mean scores moved so that guessing is 0 and the best is 1."""
    return (means - chance) / (1 - chance)
