"""How long an input may be before a model answers worse than it should, with an interval."""

from dataclasses import dataclass

import numpy as np

from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.statistics import CONFIDENCE, RESAMPLES, Floats, resampled_means

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
    if np.quantile(draws[:, columns].mean(axis=1), 0.5 - CONFIDENCE / 2) <= 0:
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
    found: np.ndarray,  # (lengths,)
    drawn: np.ndarray,  # (draws, lengths)
) -> EffectiveLength:
    # No length counts behind one that fails: a long input has to be safe up to its end.
    steps = np.array([0, *evaluation.lengths])
    reached = steps[np.logical_and.accumulate(drawn, axis=1).sum(axis=1)]
    ends = [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]
    low, high = np.quantile(reached, ends, method="inverted_cdf")
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
    scores = [[_above_chance(evaluation, t, n).mean() for n in evaluation.lengths] for t in tasks]
    means: Floats = np.mean(scores, axis=0)
    return means


def _drawn_scores(evaluation: Evaluation, tasks: tuple[str, ...]) -> Floats:
    """What they might have been with other prompts, (RESAMPLES, lengths)."""
    total = np.zeros((RESAMPLES, len(evaluation.lengths)))
    for number, task in enumerate(tasks):
        for column, length in enumerate(evaluation.lengths):
            seed = (evaluation.seed, number, column)
            total[:, column] += _draws(evaluation, task, length, seed)
    return total / len(tasks)


def _draws(evaluation: Evaluation, task: str, length: int, seed: tuple[int, ...]) -> Floats:
    asked = evaluation.tasks[task][length]
    if not np.isin(asked.scores, (0.0, 1.0)).all():
        return resampled_means(_above_chance(evaluation, task, length), seed)
    # Prompts that are all right would give no spread; Jeffreys' posterior stays honest there.
    right, count = asked.scores.sum(), len(asked.scores)
    rng = np.random.default_rng(seed)
    rates: Floats = rng.beta(right + 0.5, count - right + 0.5, size=RESAMPLES)
    return (rates - asked.chance) / (1 - asked.chance)


def _above_chance(evaluation: Evaluation, task: str, length: int) -> Floats:
    """Scores moved so that guessing is 0, (prompts,)."""
    asked = evaluation.tasks[task][length]
    return (asked.scores - asked.chance) / (1 - asked.chance)
