"""The process of one cell; started by `benchmarks.bias_attention`, not by hand."""

import json
import os
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.measure import serve
from benchmarks.models import Step, step_of, variant_of
from ropepatch.terminal import silence_transformers

_TINY = 64  # tokens that bring kernels and libraries into memory before the model counts as loaded


def main() -> None:
    """Load the cell that the first argument describes and run a step whenever asked."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    silence_transformers()
    torch.set_num_threads(1)
    cell = Cell(**json.loads(sys.argv[1]))
    make = prepare(cell)
    make(_TINY)()
    serve(make(cell.length), answers=answers)


def prepare(cell: Cell) -> Callable[[int], Callable[[], None]]:
    """What makes a step at a length."""
    if cell.model.endswith("-attention"):
        from benchmarks.attention import attention_step

        return lambda length: _step(*attention_step(cell, length), cell.direction)
    model = variant_of(cell)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    limit = cell.variant == "limit"
    return lambda length: _step(step_of(model, length, limit=limit), trained, cell.direction)


def _step(run: Step, trained: Iterable[Tensor], direction: str) -> Callable[[], None]:
    """One step in a direction that leaves nothing behind."""

    def forward() -> None:
        with torch.no_grad():
            run()

    def forward_and_backward() -> None:
        run().sum().backward()  # the sum, whose gradient is 1: those of a mean come near denormals
        for tensor in trained:
            tensor.grad = None

    return forward if direction == "forward" else forward_and_backward


if __name__ == "__main__":
    main()
