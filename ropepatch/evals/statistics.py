"""Point estimates with 95 % intervals: Wilson's for rates, a bootstrap over documents for losses.

Tokens of one document resemble each other, so documents, not tokens, are resampled; treating
tokens as independent understates the spread. Two models are compared on the same documents and
prompts, by the interval of their difference, never by whether two intervals overlap.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ropepatch.errors import DataError

CONFIDENCE = 0.95
TAILS = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)  #: quantiles that an interval ends at
Z = NormalDist().inv_cdf(TAILS[1])  #: standard errors in half of an interval, 1.96
RESAMPLES = 4000  #: keeps the resampling error of an end below a twentieth of the half-width

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; `low` and `high` are NaN where one unit is all there is."""

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def finite_or_none(number: float | None) -> float | None:
    """A number as JSON can hold it."""
    return number if number is not None and math.isfinite(number) else None


def wilson(successes: int, trials: int) -> Interval:
    """A rate with Wilson's score interval (1927), which stays honest at 0 and at 1."""
    if not 0 <= successes <= trials or trials == 0:
        raise DataError(f"{successes} of {trials} is no rate; it needs 0 ≤ successes ≤ trials ≥ 1")
    rate = successes / trials
    shrink = 1 + Z * Z / trials
    centre = (rate + Z * Z / (2 * trials)) / shrink
    half = Z * math.sqrt(rate * (1 - rate) / trials + (Z / (2 * trials)) ** 2) / shrink
    # Rounding must not put the rate itself outside of its interval at 0 and at 1.
    return Interval(rate, min(rate, centre - half), max(rate, centre + half))


def mean_score(scores: Floats, *, seed: int = 0) -> Interval:
    """The mean of prompts' `scores` (prompts,): Wilson's interval where all are right or wrong."""
    if len(scores) and are_binary(scores):
        return wilson(int(scores.sum()), len(scores))
    return bootstrap_mean(scores, np.arange(len(scores)), seed=seed)


def are_binary(scores: Floats) -> bool:
    """Whether all `scores` (prompts,) are right or wrong, none in between."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def bootstrap_mean(values: Floats, clusters: NDArray[np.int64], *, seed: int = 0) -> Interval:
    """The mean of `values` (units,), resampling whole `clusters` (units,) with replacement."""
    if len(values) == 0 or len(values) != len(clusters):
        raise DataError(f"{len(values)} values in {len(clusters)} clusters have no mean")
    _, members = np.unique(clusters, return_inverse=True)
    sums: Floats = np.bincount(members, weights=values).astype(np.float64)
    counts = np.bincount(members)
    return bootstrap_ratio(sums, counts, seed=seed)


def bootstrap_ratio(sums: Floats, weights: NDArray[np.int64], *, seed: int = 0) -> Interval:
    """Σ sums / Σ weights, (clusters,) each, resampling clusters with replacement."""
    mean = float(sums.sum() / weights.sum())
    if len(sums) == 1 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan)
    draws = _draws(len(sums), seed)
    low, high = np.quantile((draws @ sums) / (draws @ weights), TAILS)
    return Interval(mean, float(low), float(high))


def mean_of_tasks(tasks: Sequence[Floats], *, seed: int = 0) -> Interval:
    """The plain mean of the tasks' mean scores (prompts,), each drawn by itself.

    A task counts the same whatever its prompts' number, and its choice is no matter of chance.
    """
    if not tasks or any(len(scores) == 0 for scores in tasks):
        raise DataError(f"{len(tasks)} tasks with {[len(t) for t in tasks]} prompts have no mean")
    means = np.mean([drawn_means(task, (seed, n)) for n, task in enumerate(tasks)], axis=0)
    low, high = np.quantile(means, TAILS)
    value = float(np.mean([scores.mean() for scores in tasks]))
    # Where all are right the mean is not among what is drawn.
    return Interval(value, min(value, float(low)), max(value, float(high)))


def drawn_means(scores: Floats, seed: tuple[int, ...]) -> Floats:
    """What the mean of `scores` (prompts,) might have been with other prompts, (RESAMPLES,).

    Prompts that are all right would give no spread when they are drawn again; Jeffreys' posterior of
    a rate stays honest there.
    """
    if are_binary(scores):
        right, count = scores.sum(), len(scores)
        rates: Floats = np.random.default_rng(seed).beta(
            right + 0.5, count - right + 0.5, size=RESAMPLES
        )
        return rates
    means: Floats = _draws(len(scores), seed) @ scores / len(scores)
    return means


@functools.lru_cache(maxsize=32)
def _draws(count: int, seed: int | tuple[int, ...]) -> NDArray[np.uint16]:
    """How often each of `count` units is drawn, (RESAMPLES, count), a multinomial row per resample.

    Drawing takes longer than all that is made of it, and a report has thousands of intervals over
    the same documents. The small type keeps 5000 prompts at 40 MB.
    """
    shares = np.full(count, 1 / count)
    draws = np.random.default_rng(seed).multinomial(count, shares, size=RESAMPLES)
    return draws.astype(np.uint16)


def paired_difference(
    before: Floats, after: Floats, clusters: NDArray[np.int64], *, seed: int = 0
) -> Interval:
    """`after` minus `before`, unit by unit, resampling whole clusters."""
    if before.shape != after.shape:
        raise DataError(f"{before.shape} and {after.shape} values cannot be paired")
    with np.errstate(invalid="ignore"):  # of two models that give no numbers
        difference = after.astype(np.float64) - before
    return bootstrap_mean(difference, clusters, seed=seed)
