"""One-sided p-values of paired differences, and Holm's correction for many of them.

With few documents a bootstrap draws from a spread that it underestimates, and finds differences
where there are none. Flipping signs asks no more than that a difference would be as likely the other
way round if nothing had changed, and is exact for any number of documents: of 5, the smallest
p-value is 1/32.
"""

import functools
import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ropepatch.errors import DataError
from ropepatch.evals.statistics import TAILS, Floats

LEVEL = TAILS[0]  #: of a one-sided test
_ALL_FLIPS = 14  #: clusters up to which every one of the 2ⁿ sign patterns is tried
_FLIPS = 20_000  #: drawn beyond that; the smallest p-value is then 5e-5
_AT_ONCE = 1000  #: in float64, so that those of 5000 prompts take 40 MB and not 800
#: Losses and differences of a model that gives no numbers count as this many nats.
BROKEN = 100.0

Key = TypeVar("Key", bound=Hashable)


def p_above(
    values: Floats, clusters: NDArray[np.int64], bound: float = 0.0, *, seed: int = 0
) -> float:
    """P-value of "the mean of `values` (units,) is above `bound`", by flipping whole clusters' signs."""
    if len(values) == 0 or len(values) != len(clusters):
        raise DataError(f"{len(values)} values in {len(clusters)} clusters have no mean")
    _, members = np.unique(clusters, return_inverse=True)
    sums = np.bincount(members, weights=bounded(values) - bound)
    if not sums.any():
        return 1.0
    signs = _signs(len(sums), seed)
    parts = [signs[n : n + _AT_ONCE] @ sums for n in range(0, len(signs), _AT_ONCE)]
    flips = np.concatenate(parts)
    # Rounding must not put the pattern that was found below itself.
    as_large = int(np.sum(flips >= sums.sum() - 1e-9 * np.abs(sums).sum()))
    drawn = len(sums) > _ALL_FLIPS
    return (as_large + drawn) / (len(flips) + drawn)


def p_below(
    values: Floats, clusters: NDArray[np.int64], bound: float = 0.0, *, seed: int = 0
) -> float:
    """P-value of "the mean of `values` (units,) is below `bound`"."""
    return p_above(-values, clusters, -bound, seed=seed)


def are_too_few(clusters: NDArray[np.int64], tests: int = 1) -> bool:
    """Whether no difference between so many documents can pass, as all of them agree by chance."""
    return tests * 0.5 ** len(np.unique(clusters)) > LEVEL


def bounded_change(before: Floats, after: Floats) -> Floats:
    """`after` minus `before`, where a model that gives no numbers is worse than any that does."""
    return bounded(after) - bounded(before)


def bounded(losses: NDArray[np.floating]) -> Floats:
    """What is not a number, or not finite, as BROKEN nats, so that it counts and does not spread."""
    whole = losses.astype(np.float64)
    np.nan_to_num(whole, copy=False, nan=BROKEN, posinf=BROKEN, neginf=-BROKEN)
    return whole.clip(-BROKEN, BROKEN)


@functools.lru_cache(maxsize=4)
def _signs(count: int, seed: int) -> NDArray[np.int8]:
    """Patterns of ±1, (patterns, count): all of them, or a sample."""
    if count <= _ALL_FLIPS:
        bits = (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(np.int8)
    else:
        rng = np.random.default_rng(seed)
        bits = np.empty((_FLIPS, count), np.int8)
        for first in range(0, _FLIPS, _AT_ONCE):
            bits[first : first + _AT_ONCE] = rng.integers(0, 2, size=(_AT_ONCE, count))
    return 1 - 2 * bits


def mcnemar(gained: int, lost: int) -> float:
    """Exact one-sided p-value of "more prompts were gained than lost", of a fair coin's tosses."""
    tosses = gained + lost
    as_many = sum(math.comb(tosses, k) for k in range(gained, tosses + 1))
    return as_many / (1 << tosses)


def p_higher(before: Floats, after: Floats, *, seed: int = 0) -> float:
    """P-value of "scores rose", prompt by prompt: McNemar's where all are 0 or 1, else by flips."""
    if before.shape != after.shape:
        raise DataError(f"{before.shape} and {after.shape} scores cannot be paired")
    difference = after - before
    if set(np.unique(difference)) <= {-1.0, 0.0, 1.0}:
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return p_above(difference, np.arange(len(difference)), seed=seed)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """P-values corrected for how many there are (Holm 1979): each may be held against the level."""
    corrected: dict[Key, float] = {}
    largest = 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for rank, (key, value) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * value))
        corrected[key] = largest
    return {key: corrected[key] for key in p_values}
