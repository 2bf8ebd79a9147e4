"""What a training run tells after each step: to whoever watches it, and to `metrics.jsonl`."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ropepatch.terminal import ProgressDisplay, duration
from ropepatch.whole_files import write_whole


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
        if logs and "loss" in logs:
            self.loss = logs["loss"]
            self._tell(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not control.should_log:  # else told with its loss
            self._tell(state)

    def _tell(self, state: TrainerState) -> None:
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


class LastStepCallback(TrainerCallback):
    """Has the last step logged, in all processes, as its loss is gathered: the last loss is then its own."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log |= state.global_step >= state.max_steps


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
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if -1 < _step_of(line) <= step]
        write_whole(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> int:
    """−1 for a line that is not whole."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


class TerminalProgress(ProgressDisplay):
    """Shows the progress of a training run."""

    def __call__(self, progress: TrainingProgress) -> None:
        status = f"step {progress.step}/{progress.max_steps}  {progress_status(progress)}"
        self.show(progress.step / progress.max_steps, status)

    def measured(self, label: str, share: float) -> None:
        """Tell that `share` of the evaluation is done, which has come to a stage of that label."""
        self.show(share, f"evaluation {share:.0%}  {label}")


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
