"""What the measurements are held against, and how ratios are formed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.cells import Cell, Group, Measurement

Quantity = Literal["time", "memory"]
Results = Mapping[Cell, Measurement]


@dataclass(frozen=True)
class Target:
    """A bound on a ratio of two variants, at one length or at every measured one from it on."""

    model: str
    direction: str
    length: int
    over: str  #: numerator
    under: str  #: denominator
    quantity: Quantity
    bound: float
    at_least: bool  #: how many times better than stock; else at most, against the limit
    and_longer: bool = False


def _gain(
    model: str, direction: str, length: int, stock: str, time: float, memory: float
) -> list[Target]:
    return [
        Target(model, direction, length, stock, "ours", "time", time, at_least=True),
        Target(model, direction, length, stock, "ours", "memory", memory, at_least=True),
    ]


def _limit(model: str, direction: str) -> list[Target]:
    bounds: tuple[tuple[Quantity, float], ...] = (("time", 1.2), ("memory", 1.3))
    return [
        Target(
            model,
            direction,
            2048,
            "ours",
            "limit",
            quantity,
            bound,
            at_least=False,
            and_longer=True,
        )
        for quantity, bound in bounds
    ]


TARGETS = [
    *_gain("bloom", "forward", 8192, "eager", 6, 20),
    *_gain("bloom", "backward", 4096, "eager", 4, 10),
    *_gain("t5", "forward", 8192, "eager", 3, 20),
    *_gain("t5", "forward", 8192, "sdpa", 1.8, 13),
    *(
        target
        for model in ("bloom", "t5", "bloom-attention", "t5-attention")
        for direction in ("forward", "backward")
        for target in _limit(model, direction)
    ),
]


def ratio(
    results: Results, group: Group, over: str, under: str, quantity: Quantity
) -> float | None:
    """Median of one variant over the median of another; None where one was not measured."""
    above, below = (results.get(Cell(*group, variant)) for variant in (over, under))
    if above is None or below is None:
        return None
    numerator, denominator = getattr(above, quantity), getattr(below, quantity)
    return numerator / denominator if numerator is not None and denominator else None


def spread(results: Results, group: Group, over: str, under: str) -> tuple[float, float] | None:
    """Least and greatest ratio of CPU times within one round, in which both ran one after the other."""
    above, below = (results.get(Cell(*group, variant)) for variant in (over, under))
    if above is None or below is None:
        return None
    ratios = [a / b for a, b in zip(above.seconds, below.seconds, strict=False) if b]
    return (min(ratios), max(ratios)) if ratios else None


@dataclass(frozen=True)
class Verdict:
    """A target in one dtype, and the ratio that was measured: the worst one if lengths are several."""

    target: Target
    dtype: str
    ratio: float | None
    length: int | None  #: where that ratio was measured

    @property
    def word(self) -> str:
        """`met`, `not met` or `not measured`."""
        if self.ratio is None:
            return "not measured"
        above = self.ratio >= self.target.bound
        below = self.ratio <= self.target.bound
        return "met" if (above if self.target.at_least else below) else "not met"


def verdicts(
    results: Results, dtypes: Iterable[str], targets: Iterable[Target] = TARGETS
) -> list[Verdict]:
    """Every target in every dtype."""
    dtypes = tuple(dtypes)
    return [_verdict(results, target, dtype) for target in targets for dtype in dtypes]


def _verdict(results: Results, target: Target, dtype: str) -> Verdict:
    lengths = {cell.length for cell in results} if target.and_longer else {target.length}
    found = []
    for length in sorted(lengths):
        group = (target.model, dtype, target.direction, length)
        value = ratio(results, group, target.over, target.under, target.quantity)
        if value is not None and length >= target.length:
            found.append((value, length))
    worst: Callable[..., tuple[float, int]] = min if target.at_least else max
    return Verdict(target, dtype, *(worst(found) if found else (None, None)))
