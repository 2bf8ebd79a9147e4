"""CPU time and peak memory of steps that each run in a process of their own.

The parent holds a `Worker` for every cell and lets them run in turn. A worker's program calls
`serve`, which runs a step, or a row of them, for every line it reads and answers with what one took.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TextIO

ROOT = Path(__file__).parent.parent
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h

Purpose = Literal["time", "memory"]  #: what a step is run for


class WorkerDied(RuntimeError):
    """A worker ended without an answer: killed for its memory, or by an error."""


class Worker:
    """A process of one cell: it loads at once, then runs a step each time it is asked."""

    def __init__(self, module: str, argument: str) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed when the worker ends
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # of one that died already
            self.process.communicate()  # closes its input, at which it ends
        self.errors.close()

    def run(self, purpose: Purpose = "time") -> tuple[float, float]:
        """CPU seconds and peak memory above the loaded model, in megabytes, of one step."""
        requests, answers = self.process.stdin, self.process.stdout
        if requests is None or answers is None:
            raise WorkerDied("its pipes are closed")
        try:
            print(purpose, file=requests, flush=True)
            seconds, megabytes = json.loads(answers.readline())
        except (BrokenPipeError, ValueError):
            raise WorkerDied(self._last_words()) from None
        return seconds, megabytes

    def _last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        if code < 0:
            return f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        return lines[-1] if lines else f"ended with status {code}"


def serve(step: Callable[[], None], *, answers: TextIO, row: int = 1) -> None:
    """Run `step` for every line of the standard input and write what it took.

    Called when everything is loaded and kernels have run once: memory counts from here. Memory is that
    of one step. A `row` of several is timed after a first one, and seconds are their mean: each starts
    in the memory that another left, as in training.
    """
    _give_back()
    loaded = _resident()
    for purpose in sys.stdin:
        timed = purpose.strip() == "time"
        steps = row if timed else 1
        _keep_freed(timed)
        _give_back()
        if steps > 1:
            step()
        _forget_peak()
        started = time.process_time()
        for _ in range(steps):
            step()
        seconds = (time.process_time() - started) / steps
        print(json.dumps([seconds, (_peak() - loaded) / 1e6]), file=answers, flush=True)


def available_memory() -> int:
    """Bytes that a new process can have without swapping."""
    fields = _fields(Path("/proc/meminfo"))
    return fields.get("MemAvailable") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _keep_freed(keep: bool) -> None:
    """Whether freed tensors stay in the process for the next ones, as usual, or go back at once.

    How many of those that it keeps lie between others, unusable, is glibc's luck: the same tensors
    may take 1.4 times as much memory. To get memory anew for each takes time.
    """
    if (option := _of_glibc("mallopt")) is not None:
        option(_M_MMAP_THRESHOLD, 1 << (25 if keep else 20))  # 32 MiB is the most that glibc keeps


def _give_back() -> None:
    """Hand freed memory back to the system, so that no step starts on what another left."""
    gc.collect()
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc's own; musl and other systems have none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _forget_peak() -> None:
    """Start the kernel's record of the peak anew; where it cannot, peaks count from the start."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def _peak() -> int:
    """Most bytes that this process held in memory since `_forget_peak`."""
    unit = 1 if sys.platform == "darwin" else 1024
    whole_life = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return _fields(_STATUS).get("VmHWM", whole_life)


def _resident() -> int:
    """Bytes that this process holds in memory now."""
    return _fields(_STATUS).get("VmRSS") or _peak()


def _fields(path: Path) -> dict[str, int]:
    """`Name: 12 kB` lines of a file of the kernel, in bytes; nothing where there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in pairs if words[-1] == "kB"}
