"""What can be measured: one cell is one variant of one model at one length."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

HEADS = 8
LAYERS = 4
LENGTHS = (1024, 2048, 4096, 8192, 16384)
DEFAULT_LENGTHS = {"mpt": (2048, 4096), "falcon": (2048, 4096)}  #: fewer where no target is set
DTYPES = ("float32", "bfloat16")

#: what each model can be measured as: stock implementations, ropepatch, and the limit
VARIANTS = {
    "bloom": ("eager", "ours", "limit"),
    "t5": ("eager", "sdpa", "ours", "limit"),
    "mpt": ("eager", "ours", "limit"),
    "falcon": ("eager", "sdpa", "ours", "limit"),
    "bloom-attention": ("ours", "limit"),  # one call of the attention function, without a model
    "t5-attention": ("ours", "limit"),
}
WITH_TABLE = ("t5", "t5-attention")  #: have a bias table that can be trained
STOCK = ("eager", "sdpa")
#: forward; forward and backward with a frozen bias table; the same with the table trained
DIRECTIONS = ("forward", "backward", "backward-table")

# Peak of stock's attention in float32 matrices of H×L×L, in (forward, forward and backward) of
# LAYERS layers; measured at L = 2048, and only used to leave out what does not fit.
_HELD = {"eager": (4.7, 9.5), "sdpa": (2.6, 6.5)}
_HELD_BY_FALCON = {"eager": (6.5, 9.5), "sdpa": (1.5, 2.6)}

_START = 7e7  #: work that takes as long as the start of a process

Group = tuple[str, str, str, int]


@dataclass(frozen=True)
class Cell:
    """One variant of one model, dtype and direction at one length, in tokens."""

    model: str
    dtype: str
    direction: str
    length: int
    variant: str

    @property
    def group(self) -> Group:
        """What cells share that are measured in turn: model, dtype, direction, length."""
        return self.model, self.dtype, self.direction, self.length

    @property
    def stock_bytes(self) -> float:
        """Rough peak memory of stock attention, which holds matrices of H×L×L; 0 for the others."""
        if self.variant not in STOCK:
            return 0.0
        held_by = _HELD_BY_FALCON if self.model == "falcon" else _HELD
        held = held_by[self.variant][self.direction != "forward"]
        return held * HEADS * self.length**2 * 4

    @property
    def work(self) -> float:
        """Rough time of one step relative to other cells; only for the estimate of the time left."""
        quadratic = self.length**2 * (1 if self.model.endswith("-attention") else LAYERS)
        backward = 1.0 if self.direction == "forward" else 3.5
        slow = {"eager": 4.0, "sdpa": 2.5}.get(self.variant, 1.0)
        return backward * slow * (quadratic + 4e3 * self.length) + _START


@dataclass(frozen=True)
class Measurement:
    """What every round of a cell took, or why there is none."""

    cell: Cell
    seconds: tuple[float, ...] = ()  #: CPU time of each round
    memory: float | None = None  #: peak above the loaded model, 10⁶ bytes
    problem: str | None = None  #: why it was not measured

    @property
    def time(self) -> float | None:
        """Median CPU seconds."""
        return median(self.seconds) if self.seconds else None


def plan(
    *,
    models: Iterable[str],
    dtypes: Iterable[str],
    directions: Iterable[str],
    lengths: Iterable[int] | None,
    variants: Iterable[str],
) -> list[Cell]:
    """All cells of a run, those that are measured in turn side by side."""
    wanted = set(variants)
    if "stock" in wanted:
        wanted |= set(STOCK)
    directions, dtypes, chosen = tuple(directions), tuple(dtypes), tuple(lengths or ())
    return [
        Cell(model, dtype, direction, length, variant)
        for model in models
        for dtype in dtypes
        for direction in directions
        if direction != "backward-table" or model in WITH_TABLE
        for length in chosen or DEFAULT_LENGTHS.get(model, LENGTHS)
        for variant in VARIANTS[model]
        if variant in wanted
    ]
