"""How far the logits are from stock's eager attention in float64."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.models import build, step_of, variant_of

LENGTHS = {"bloom": (1024, 5000), "t5": (1024, 4096)}
_BOUND = 1e-5  # relative, in float32; in bfloat16 stock's own error is the bound


@dataclass(frozen=True)
class Difference:
    """How far an output is from the float64 one, relative to it."""

    largest: float  #: largest difference over the largest output
    typical: float  #: root of the mean square of the difference over that of the output


@dataclass(frozen=True)
class Error:
    """The errors of stock and of ours in one place."""

    model: str
    dtype: str
    length: int
    stock: Difference
    ours: Difference

    @property
    def word(self) -> str:
        """`met` or `not met`."""
        if self.dtype == "float32":
            return "met" if self.ours.largest <= _BOUND else "not met"
        # The largest of some million roundings to bfloat16 is a matter of luck; the typical is not.
        return "met" if self.ours.typical <= self.stock.typical else "not met"


def errors(
    models: Iterable[str], dtypes: Iterable[str], lengths: Iterable[int] | None
) -> Iterator[Error]:
    """The errors of stock and ours, one after another as they are measured."""
    dtypes, chosen = tuple(dtypes), None if lengths is None else tuple(lengths)
    for model in models:
        for length in chosen or LENGTHS[model]:
            for dtype in dtypes:
                reference = _reference(model, dtype, length)
                stock, ours = (
                    _difference(_output(Cell(model, dtype, "forward", length, variant)), reference)
                    for variant in ("eager", "ours")
                )
                yield Error(model, dtype, length, stock, ours)


@torch.no_grad()
def _reference(model: str, dtype: str, length: int) -> Tensor:
    """Stock in float64 with the weights of `dtype`, so that their rounding is no one's error.

    BLOOM's own softmax is in float32 even there: about 1e-7 of what is measured is its.
    """
    exact = build(model, length).to(getattr(torch, dtype)).double()
    return step_of(exact, length, limit=False)()


@torch.no_grad()
def _output(cell: Cell) -> Tensor:
    return step_of(variant_of(cell), cell.length, limit=False)()


def _difference(output: Tensor, reference: Tensor) -> Difference:
    off = output.double() - reference
    return Difference(
        largest=(off.abs().max() / reference.abs().max()).item(),
        typical=(off.square().mean().sqrt() / reference.square().mean().sqrt()).item(),
    )
