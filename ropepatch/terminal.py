"""What a person sees: rows of text, and while something long runs, how far it is and for how long."""

import math
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers.utils import logging

_SECONDS_BETWEEN_LINES = 15.0  #: where the output is a file and not a terminal
_HEADING = 12  #: characters of a row's heading
_OTHER_WORK = 1.5  #: times the expected seconds, from which all stages take longer
_TELLING = 0.02  #: share of the work after which its pace says how long the rest takes


class ProgressDisplay:
    """A bar with a status on a terminal; elsewhere a line at both ends and now and then."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = Console(stderr=True)
        self.last_line = -math.inf
        self.last_shown = (title, -1.0)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=1.0, status="starting")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def show(self, share: float, status: str, *, line: str | None = None) -> None:
        """Tell that `share` of the work is done, in the words of `status` (`line` in a file)."""
        self.bar.update(self.task, description=self.title, completed=share, status=status)
        if not self.console.is_terminal and self._due(share):
            print(status if line is None else line, file=sys.stderr)

    def announce(self, line: str) -> None:
        """Print a line that stays."""
        if self.console.is_terminal:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr)

    def tell(self, status: str) -> None:
        """Tell what is prepared before the work starts."""
        self.show(0.0, status)

    def _due(self, share: float) -> bool:
        """Whether a line is wanted now; if so, the wait for the next one begins."""
        now, shown = time.monotonic(), (self.title, share)
        if shown == self.last_shown:
            return False
        turn = share >= 1.0 or self.title != self.last_shown[0]
        self.last_shown = shown
        if not turn and now - self.last_line < _SECONDS_BETWEEN_LINES:
            return False
        self.last_line = now
        return True


class ShareProgress(ProgressDisplay):
    """Progress of work that tells the share of it that is done."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.share = 0.0
        self.started = self.paced = time.perf_counter()

    def __call__(self, share: float) -> None:
        """Tell that `share` of the work is done; its pace counts from the last time that none was."""
        self.share = min(share, 1.0)
        now = time.perf_counter()
        if self.share == 0:
            self.paced = now
        status = f"{self.share:.0%}  {duration(now - self.started)} elapsed"
        if self.share > _TELLING:
            left = (now - self.paced) * (1 - self.share) / self.share
            status += f", about {duration(left)} left"
        self.show(self.share, status, line=f"{self.title}: {status}")


@dataclass
class _Stage:
    """A stage of long work: stages of one kind go at one pace."""

    kind: str
    expected: float  #: seconds, as estimated before the work began
    done: float = 0.0  #: share of it


class StageProgress(ProgressDisplay):
    """Progress of work in stages of several kinds, each of which has its own pace.

    `expected` names the kind and the expected seconds of each stage, in order. As soon as a kind of
    stage has run for a while, its own pace says how long the rest of it takes.
    """

    def __init__(self, title: str, expected: Sequence[tuple[str, float]]) -> None:
        super().__init__(title)
        self.stages = [_Stage(kind, seconds) for kind, seconds in expected]
        self.number = -1  #: of the running stage
        self.paces: dict[str, float] = {}  #: seconds that one expected second took, by kind
        self.started = time.perf_counter()

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[[float], None]]:
        """Run the next stage; the body calls the function with the share of the stage that is done."""
        self.title = title
        self.number += 1
        stage = self.stages[self.number]
        first: tuple[float, float] | None = None  # time and share at which the preparation ended

        def done(share: float) -> None:
            nonlocal first
            stage.done = share
            if share > 0:
                first = first or (time.perf_counter(), share)
                self._measure_pace(stage, *first)
            self._show_stages()

        done(0.0)
        yield done
        stage.done = 1.0
        self._show_stages()

    def _measure_pace(self, stage: _Stage, began: float, first: float) -> None:
        """Measure the pace of a stage of which the share `first` was done at the time `began`."""
        if (worked := stage.done - first) >= _TELLING:
            seconds = time.perf_counter() - began
            self.paces[stage.kind] = seconds / (worked * stage.expected)

    def seconds_left(self) -> float:
        """Seconds that all stages still take, by the pace of their kind or else by that of the machine."""
        mean = statistics.fmean(self.paces.values()) if self.paces else 1.0
        # What was expected of one kind may be wrong by a third; more is a machine with other work.
        others = mean if mean >= _OTHER_WORK or mean <= 1 / _OTHER_WORK else 1.0
        return sum(
            (1 - stage.done) * stage.expected * self.paces.get(stage.kind, others)
            for stage in self.stages
        )

    def _show_stages(self) -> None:
        total = sum(stage.expected for stage in self.stages)
        share = sum(stage.done * stage.expected for stage in self.stages) / total
        elapsed = duration(time.perf_counter() - self.started)
        left = duration(self.seconds_left())
        status = f"{share:.0%}  {elapsed} elapsed, about {left} left"
        self.show(share, status, line=f"{self.title}: {status}")


def print_rows(rows: dict[str, str]) -> None:
    """A heading and its text on each line; a long text goes on below itself."""
    width = Console().width
    for heading, text in rows.items():
        for line in textwrap.wrap(text, width - _HEADING, break_on_hyphens=False):
            print(f"{heading:<{_HEADING}}{line}")
            heading = ""


def duration(seconds: float) -> str:
    """`2 h 05 min`, `4 min 10 s` or `9 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def silence_transformers() -> None:
    """No bars and warnings of transformers from now on."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and warnings of transformers between the lines of our own progress."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    silence_transformers()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
