"""How far a training run is, and how long it will still take."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

SECONDS_BETWEEN_LINES = 15.0  #: where the output is a file and not a terminal


@dataclass(frozen=True)
class TrainingProgress:
    """One optimizer step is done."""

    step: int
    max_steps: int
    loss: float | None  #: mean since the last logging step, nats per token
    tokens_per_second: float | None  #: None until two steps of this session are done
    seconds_left: float | None


ProgressSink = Callable[[TrainingProgress], None]


class ProgressCallback(TrainerCallback):
    """Reports every step to a sink.

    The clock starts after the first step: it holds compilation and warm-up, which would
    make the first estimates several times too long.
    """

    def __init__(self, sink: ProgressSink, tokens_per_step: int) -> None:
        self.sink = sink
        self.tokens_per_step = tokens_per_step
        self.loss: float | None = None
        self.first: tuple[int, float] | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first = (state.global_step, now)
        done = state.global_step - self.first[0]
        per_step = (now - self.first[1]) / done if done else None
        self.sink(
            TrainingProgress(
                step=state.global_step,
                max_steps=state.max_steps,
                loss=self.loss,
                tokens_per_second=self.tokens_per_step / per_step if per_step else None,
                seconds_left=per_step * (state.max_steps - state.global_step) if per_step else None,
            )
        )


class MetricsCallback(TrainerCallback):
    """Appends every log of the Trainer to `metrics.jsonl`, one object per line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def forget_metrics_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and warnings of transformers between the lines of our own progress."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class TerminalProgress:
    """A progress bar with the time left on a terminal, a line now and then elsewhere."""

    def __init__(self, title: str) -> None:
        self.console = Console(stderr=True)
        self.last_line = -SECONDS_BETWEEN_LINES
        self.last_step = 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=None, status="starting")

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

    def __call__(self, progress: TrainingProgress) -> None:
        status = progress_status(progress)
        self.bar.update(self.task, completed=progress.step, total=progress.max_steps, status=status)
        if not self.console.is_terminal:
            self._line(progress, status)

    def _line(self, progress: TrainingProgress, status: str) -> None:
        now = time.monotonic()
        due = now - self.last_line >= SECONDS_BETWEEN_LINES
        if progress.step != self.last_step and (due or progress.step == progress.max_steps):
            self.last_line, self.last_step = now, progress.step
            print(f"step {progress.step}/{progress.max_steps}  {status}", file=sys.stderr)


def progress_status(progress: TrainingProgress) -> str:
    """`loss 2.301  12,100 tokens/s  4 min 10 s left`."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`2 h 05 min`, `4 min 10 s` or `9 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class ShareProgress:
    """The same for work that tells the share of it that is done."""

    def __init__(self, title: str) -> None:
        self.terminal = TerminalProgress(title)
        self.started = time.perf_counter()

    def __enter__(self) -> Self:
        self.terminal.__enter__()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.terminal.__exit__(*raised)

    def __call__(self, share: float) -> None:
        elapsed = time.perf_counter() - self.started
        left = elapsed * (1 - share) / share if share > 0 else None
        self.terminal(
            TrainingProgress(
                step=round(100 * share),
                max_steps=100,
                loss=None,
                tokens_per_second=None,
                seconds_left=left,
            )
        )
