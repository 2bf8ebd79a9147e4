"""`loss.png`: the losses of `metrics.jsonl`, and those on held-out text once they are measured."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ropepatch.evals import Evaluation
from ropepatch.whole_files import write_whole

_PANEL = (5.6, 3.6)  #: inches
#: Okabe and Ito's colours, told apart by colour-blind readers too; markers differ besides.
_COLOURS = ("#000000", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00")
_SMOOTHED = 15  #: parts of the curve that are averaged over
_MARKERS = ("o", "s", "^", "D", "v", "P")


class LossCurveCallback(TrainerCallback):
    """Draws the curve whenever a checkpoint is saved."""

    def __init__(self, metrics: Path, tokens_per_step: int) -> None:
        self.metrics = metrics
        self.tokens_per_step = tokens_per_step

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        draw_loss_curve(self.metrics, self.tokens_per_step)


def draw_loss_curve(metrics: Path, tokens_per_step: int, stages: Sequence[Evaluation] = ()) -> Path:
    """Draw the losses in `metrics` as `loss.png` beside it; the picture's path. Whole or as it was."""
    panels = 2 if stages else 1
    figure = Figure(figsize=(_PANEL[0] * panels, _PANEL[1]), layout="constrained", dpi=150)
    training, *rest = figure.subplots(1, panels, squeeze=False)[0]
    _draw_training(training, _losses(metrics), tokens_per_step)
    for axes in rest:
        _draw_stages(axes, stages)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path = metrics.with_name("loss.png")
    write_whole(path, buffer.getvalue())
    return path


def _losses(metrics: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def _draw_training(axes: Axes, losses: list[tuple[int, float]], tokens_per_step: int) -> None:
    steps, values = zip(*losses, strict=True)
    neighbours = len(values) // _SMOOTHED
    blurred = neighbours > 1
    # A line through one point is not seen without its marker.
    axes.plot(steps, values, ".-", color=_COLOURS[2], alpha=0.4 if blurred else 1.0, label="logged")
    if blurred:
        mean = np.convolve(values, np.full(neighbours, 1 / neighbours), mode="valid")
        middle = steps[neighbours // 2 :][: len(mean)]
        axes.plot(middle, mean, color=_COLOURS[0], label=f"mean of {neighbours}")
        axes.legend()
    axes.set_title("training")
    axes.set_xlabel(f"optimizer steps, {tokens_per_step:,} tokens each")
    axes.set_ylabel("loss, nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _draw_stages(axes: Axes, stages: Sequence[Evaluation]) -> None:
    """Loss of the same held-out tokens by the length of the window, a line per stage."""
    for number, stage in enumerate(stages):
        style = number % len(_COLOURS)
        axes.plot(
            stage.lengths,
            [stage.target_loss(length).value for length in stage.lengths],
            color=_COLOURS[style],
            marker=_MARKERS[style],
            label=stage.label,
        )
    axes.set_title(f"held out, the same last {stages[0].configuration['targets']} tokens")
    axes.set_xlabel("window, tokens")
    axes.set_ylabel("loss, nats per token")
    axes.set_xscale("log", base=2)
    axes.set_xticks(stages[0].lengths)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
