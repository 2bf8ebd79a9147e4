"""The processes that torchrun started for a run: what one of them does for all, and how all stop together."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ropepatch.errors import ConfigError, ProcessError

COMMAND = "torchrun --nproc-per-node {} -m ropepatch train RECIPE.yaml"

Result = TypeVar("Result")


def processes() -> PartialState:
    """This process among those of its launch; the first call joins them."""
    return PartialState(cpu=not torch.accelerator.is_available())


def refuse_odd_launch() -> None:
    """Raise ConfigError where fewer or more devices would train than whoever started this meant.

    `accelerate launch --cpu --num_processes 2` announces an address to meet at, and starts one
    process, which is told neither a rank nor how many there are. And the Trainer would split the
    batches of a single process over all GPUs that it sees.
    """
    alone = processes().num_processes == 1
    announced = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if alone and announced and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes, but started this one alone, as it "
            f"does with --cpu; run {COMMAND.format('N')}"
        )
    if alone and (gpus := torch.cuda.device_count()) > 1:
        raise ConfigError(
            f"one process was started where {gpus} GPUs are visible; run {COMMAND.format(gpus)} to "
            "train on all of them, or set CUDA_VISIBLE_DEVICES=0 to train on one"
        )


@contextmanager
def together() -> Iterator[None]:
    """An error of one process in the body ends all: it is raised there, and ProcessError elsewhere.

    For bodies in which the processes do not talk to each other; one that waits for another there
    would wait for ever.
    """
    me = processes().process_index  # which joins them; gather_object would not, on CPUs
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    failed = [number for number, bad in enumerate(gather_object([error is not None])) if bad]
    if not failed:
        return
    if error is not None and failed[0] == me:
        raise error
    raise ProcessError(f"process {failed[0]} of this run failed; its message says why") from error


def from_main(make: Callable[[], Result]) -> Result:
    """What `make` returns in the main process, handed to all."""
    results: list[Result | None] = [None]
    with together():
        if processes().is_main_process:
            results[0] = make()
    result: Result = broadcast_object_list(results)[0]
    return result


def require_same_processes(checkpoint: Path) -> None:
    """Raise ConfigError for a checkpoint of another number of processes: others would get its data."""
    then, now = len([*checkpoint.glob("rng_state*.pth")]), processes().num_processes
    if then != now:
        start = "ropepatch train RECIPE.yaml" if then == 1 else COMMAND.format(then)
        raise ConfigError(
            f"{checkpoint} is of a run on {then} process(es), and this one has {now}, whose steps "
            f"take other sequences; go on with {start}, or choose another output_dir"
        )
