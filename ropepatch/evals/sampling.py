"""How many windows and prompts: for an interval of a given width, or in a given time.

A pilot of a few tells the spread or the cost; then the counts are fixed, once. Looking at results
again and again until they are good enough would make intervals too narrow.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ropepatch.errors import ConfigError
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.statistics import Interval, Z
from ropepatch.evals.verdict import extension_gain

PILOT = 16  #: windows, and prompts of each task and length, for the spread; all of them count
TIMED = 4  #: the same for the cost, of every model
_LEAST = 8  #: windows or prompts, of which an interval still says something
MOST_PROMPTS = 5000  #: of each task and length; RULER asks 500
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Counts:
    """What is measured of every model."""

    windows: int
    prompts: int  #: of each task and length


def counts_for_width(stages: Sequence[Evaluation], half: float, room: int) -> Counts:
    """Counts whose 95 % intervals reach about `half` to each side, by the spread in a pilot.

    That of scores, and in nats that of the difference between the base, which comes first, and the
    candidate with the widest; of a base alone, of its context gain. `room` is how many windows the
    documents hold.
    """
    require_width(half)
    base, *others = stages
    compared: Sequence[Evaluation | None] = others or [None]
    found = [each for other in compared for each in _differences(base, other)]
    widest = max(map(_half, found), default=math.inf)
    wanted = len(base.documents) * (widest / half) ** 2
    windows = room if not math.isfinite(wanted) else math.ceil(wanted)
    prompts = math.ceil(Z * Z * max(map(_variance, stages)) / (half * half))
    return Counts(min(max(windows, PILOT), room), min(max(prompts, PILOT), MOST_PROMPTS))


def require_width(half: float) -> None:
    """Raise ConfigError for half of an interval that cannot be one."""
    if not 0 < half < 1:
        raise ConfigError(f"--ci {half:g} must lie between 0 and 1, such as 0.02")


def counts_for_time(seconds: float, each: float, once: float, room: int) -> Counts:
    """Counts that take `seconds`, of which `once` go to what does not depend on them.

    `each` is what one window and one prompt of every task and length take, of all models together.
    """
    count = math.floor((seconds - once) / each)
    if count < _LEAST:
        raise ConfigError(
            f"--budget {seconds:.0f}s is too short: {_LEAST} windows and prompts of every model take "
            f"about {once + _LEAST * each:.0f}s; use a longer budget, shorter lengths, or fewer tasks or "
            "models"
        )
    return Counts(min(count, room), min(count, MOST_PROMPTS))


def parse_time(text: str) -> float:
    """Seconds of "90s", "10m" or "1.5h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"--budget {text!r} is no time; write 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2]]


def _differences(base: Evaluation, other: Evaluation | None) -> Sequence[Interval]:
    if other is None:
        return [base.context_gain(length) for length in base.lengths[1:]]
    lengths = (base.reference_length, *other.lengths_gained)
    return [extension_gain(base, other, length) for length in lengths]


def _half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2 if interval.bounded else math.inf


def _variance(evaluation: Evaluation) -> float:
    """The largest of a prompt's score, in a task at a length; two of each outcome are added."""
    variances = [0.0]
    for by_length in evaluation.tasks.values():
        for asked in by_length.values():
            rate = (asked.scores.sum() + 2) / (len(asked.scores) + 4)
            variances.append(float(rate * (1 - rate)))
    return max(variances)
