"""Whether a model uses its context at all: a flat loss alone does not say so."""

from dataclasses import dataclass

import numpy as np

from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.statistics import Interval, mean_score, paired_difference

FLAT = 0.01  #: nats per token up to which a change of the loss of the same tokens counts as none


@dataclass(frozen=True)
class UnusedContext:
    """A length beyond which more context changes nothing and nothing is found."""

    length: int
    gain: Interval  #: loss of the same tokens in the longest window minus that at `length`
    far_score: (
        Interval | None
    )  #: of prompts whose needle is further away; None where there are none

    def __str__(self) -> str:
        asked = "" if self.far_score else " (no needle was asked for further away)"
        return f"uses no context beyond {self.length} tokens{asked}"


def unused_context(evaluation: Evaluation) -> UnusedContext | None:
    """The shortest measured length of that kind, or None: then more context matters, or it may."""
    for number, length in enumerate(evaluation.lengths[:-1]):
        gains = [_gain(evaluation, length, longer) for longer in evaluation.lengths[number + 1 :]]
        far = [_far_score(evaluation, task, length) for task in evaluation.tasks]
        asked = [(score, chance) for score, chance in far if score is not None]
        is_flat = all(gain.bounded and -FLAT <= gain.low <= gain.high <= FLAT for gain in gains)
        if is_flat and all(score.low <= chance for score, chance in asked):
            best = max((score for score, _ in asked), key=lambda score: score.value, default=None)
            return UnusedContext(length, gains[-1], best)
    return None


def _gain(evaluation: Evaluation, length: int, longer: int) -> Interval:
    before, after = evaluation.target_means(length), evaluation.target_means(longer)
    return paired_difference(before, after, evaluation.documents, seed=evaluation.seed)


def _far_score(evaluation: Evaluation, task: str, length: int) -> tuple[Interval | None, float]:
    """Of all longer prompts whose needle is at least `length` tokens away, and what guessing gives."""
    asked = [scores for n, scores in evaluation.tasks[task].items() if n > length]
    far = [scores.scores[scores.distances >= length] for scores in asked]
    scores = np.concatenate([np.empty(0), *far])
    chance = max((found.chance for found in asked), default=0.0)
    return (mean_score(scores, seed=evaluation.seed) if len(scores) else None), chance
