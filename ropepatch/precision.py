"""Number formats to compute in: which are fast on a device, by its flags and by timing.

torch has kernels for bfloat16 and float16 on every CPU, but on a CPU without instructions for them a
matrix product takes 10 to 100 times as long as in float32, without a warning.
"""

import time
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from ropepatch.errors import ConfigError, RopepatchWarning

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionOption = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_SHAPE = (128, 128, 256)  #: rows, inner size, columns of the product: 0.1 ms in float32
_REPETITIONS = 4
#: Times the time of float32. CPUs were seen at 0.65, 2.8 and above 28: noise does not cross the first.
_SLOWER = 1.5
_MUCH_SLOWER = 3.0  #: an explicit choice is warned of
#: CPU time, where its clock resolves a product of 0.1 ms (not on Windows)
_clock = (
    time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter
)


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision, and the reason for it in words."""

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.precision}: {self.reason}"


def choose_precision(option: PrecisionOption, device: torch.device) -> PrecisionChoice:
    """Precision for training on `device`; `auto` takes bf16 where it is at least as fast as fp32.

    Raises ConfigError for fp16 on a CPU. An explicit bf16 that is much slower than fp32 is a
    RopepatchWarning that gives the measured ratio.
    """
    if option == "auto":
        return _fastest(device)
    if option == "fp16" and device.type == "cpu":
        raise ConfigError(
            "training.precision: fp16 needs a GPU, as torch does not scale its gradients on a CPU; "
            "use auto"
        )
    dtype = DTYPES[option]
    warn_if_slow(f"training.precision: {option}", dtype, device, instead="fp32")
    return PrecisionChoice(option, "as the recipe says")


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Recognise a 16-bit format that takes longer than float32 on `device`."""
    halves = (torch.bfloat16, torch.float16)
    return dtype in halves and device.type == "cpu" and relative_time(dtype) > _SLOWER


def warn_if_slow(what: str, dtype: torch.dtype, device: torch.device, instead: str) -> None:
    """Warn that `what` computes in a `dtype` that takes much longer than float32 on `device`.

    `instead` is the value of the same key that is faster.
    """
    if is_slow(dtype, device) and (ratio := relative_time(dtype)) > _MUCH_SLOWER:
        warnings.warn(
            f"{what} takes {ratio:.0f} times as long as float32 on this CPU; "
            f"use {instead} unless you need the same numbers as elsewhere",
            RopepatchWarning,
            stacklevel=3,
        )


def slowness(dtype: torch.dtype) -> str:
    """Describe the time of a dtype: `bfloat16 takes 97 times as long as float32 on this CPU`."""
    ratio = relative_time(dtype)
    return (
        f"{str(dtype).removeprefix('torch.')} takes {ratio:.{0 if ratio >= 10 else 1}f} times as long "
        "as float32 on this CPU"
    )


def _fastest(device: torch.device) -> PrecisionChoice:
    if device.type in ("cuda", "xpu"):
        if torch.get_device_module(device).is_bf16_supported(including_emulation=False):
            return PrecisionChoice("bf16", "this GPU has instructions for it")
        return PrecisionChoice("fp32", "this GPU has no instructions for bfloat16")
    if device.type != "cpu":
        return PrecisionChoice("fp32", f"torch does not report whether {device.type} has bfloat16")
    precision: Precision = "fp32" if relative_time(torch.bfloat16) > 1.0 else "bf16"
    return PrecisionChoice(precision, slowness(torch.bfloat16))


@cache
def relative_time(dtype: torch.dtype) -> float:
    """Time of a small matrix product in `dtype` on the CPU, over its time in float32.

    CPU time of one thread, the shortest of a few runs: other work on the machine does not change it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _product_time(dtype) / _product_time(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _product_time(dtype: torch.dtype) -> float:
    """Seconds of CPU time of one product."""
    rows, inner, columns = _SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    left @ right  # the first one also prepares the kernel
    return min(_timed(left, right) for _ in range(_REPETITIONS))


def _timed(left: Tensor, right: Tensor) -> float:
    start = _clock()
    left @ right
    return _clock() - start
