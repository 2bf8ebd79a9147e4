"""Needle heat maps, length × depth: what was found, and how much it helped, cell by cell.

The value stands in its cell, so that its colour says nothing alone. Its interval is shown below the
map while the cell is pointed at, tapped or focused, by the page's style sheet and without a script.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ropepatch.evals.drawing import INK, INKS, LEVELS, Chart, Panel, as_svg, inline, style
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.statistics import Interval, bootstrap_mean, mean_score
from ropepatch.evals.tasks.scores import TaskScores
from ropepatch.evals.wording import MISSING, show_number, show_range, task_name

_TASKS = ("needle", "passkey", "kv")  #: with one needle each, whose depth says it all
_ROWS = 11  #: depths 0, 0.1, … 1, and what is nearest to each

_HOW = "Hatched: no prompts. Point at a cell, tap it or tab to it for its interval."

_WIDTH = 4.0  #: inches
_ROW_HEIGHT, _BELOW, _ABOVE = 0.26, 0.86, 0.08
_LARGEST_TEXT = 10  #: points
_SVG = "{http://www.w3.org/2000/svg}"

ET.register_namespace("", _SVG[1:-1])
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Cell:
    """What was measured at one length and depth."""

    interval: Interval
    prompts: int


Cells = Mapping[tuple[int, int], Cell]  #: by length and row; what was not measured is absent


def draw_maps(stages: Sequence[Evaluation]) -> list[Chart]:
    """For every task with needles, a map for each stage: in nats where they were measured, in %."""
    charts = []
    for task in _TASKS:
        if any(np.isfinite(s.depths).any() for stage in stages for s in _asked(stage, task)):
            if any(scores.gains is not None for stage in stages for scores in _asked(stage, task)):
                charts.append(_gain_maps(stages, task))
            charts.append(_score_maps(stages, task))
    return charts


def score_cells(scores: Mapping[int, TaskScores], seed: int) -> Cells:
    """Mean scores, with Wilson's interval where answers are right or wrong."""
    return {
        place: Cell(mean_score(asked.scores[chosen], seed=seed), int(chosen.sum()))
        for place, asked, chosen in _places(scores)
    }


def gain_cells(scores: Mapping[int, TaskScores], seed: int) -> Cells:
    """Retrieval gains in nats per answer token, resampling prompts."""
    cells = {}
    for place, asked, chosen in _places(scores):
        if asked.gains is not None:
            gains = asked.gains[chosen].astype(np.float64)
            interval = bootstrap_mean(gains, np.arange(len(gains)), seed=seed)
            cells[place] = Cell(interval, len(gains))
    return cells


def _places(
    scores: Mapping[int, TaskScores],
) -> list[tuple[tuple[int, int], TaskScores, NDArray[np.bool_]]]:
    """Length and row of every cell that has prompts, and which they are."""
    return [
        ((length, row), asked, rows == row)
        for length, asked in scores.items()
        for rows in [np.round(asked.depths * (_ROWS - 1))]
        for row in range(_ROWS)
        if (rows == row).any()
    ]


def _asked(stage: Evaluation, task: str) -> list[TaskScores]:
    return list(stage.tasks.get(task, {}).values())


def _gain_maps(stages: Sequence[Evaluation], task: str) -> Chart:
    cells = [gain_cells(stage.tasks.get(task, {}), stage.seed) for stage in stages]
    caption = (
        "By how many nats per token of the answer the needle makes it likelier: its loss without the "
        f"needle minus that with it. {_HOW} Intervals: 95 % over prompts."
    )
    title = f"What the {task_name(task)} brings, nats"
    return _chart(title, caption, stages, cells, _Scale(_largest(cells), 2, 1, ""))


def _score_maps(stages: Sequence[Evaluation], task: str) -> Chart:
    cells = [score_cells(stage.tasks.get(task, {}), stage.seed) for stage in stages]
    chances = [chance for stage in stages if (chance := stage.chance(task)) is not None]
    caption = f"Right answers in %; guessing gives {100 * chances[0]:.1f}. {_HOW}"
    title = f"{task_name(task).capitalize()} by length and depth, %"
    return _chart(title, f"{caption} Intervals: 95 % (Wilson).", stages, cells, _PERCENT)


@dataclass(frozen=True)
class _Scale:
    """How a value is coloured and said."""

    top: float  #: the value of the strongest colour
    digits: int
    times: float
    unit: str

    def text(self, value: float) -> str:
        return show_number(self.times * value, digits=self.digits)

    def ends(self, found: Interval) -> str:
        ends = Interval(found.value, self.times * found.low, self.times * found.high)
        return show_range(ends, digits=max(1, self.digits))

    def level(self, value: float) -> int:
        return int(np.clip(len(LEVELS) * value / self.top, 0, len(LEVELS) - 1))


_PERCENT = _Scale(1.0, 0, 100.0, " %")


def _largest(cells: Sequence[Cells]) -> float:
    values = [cell.interval.value for each in cells for cell in each.values()]
    return max((value for value in values if math.isfinite(value) and value > 0), default=1.0)


def _chart(
    title: str, caption: str, stages: Sequence[Evaluation], cells: Sequence[Cells], scale: _Scale
) -> Chart:
    lengths = sorted({length for each in cells for length, _ in each})
    panels = []
    for number, (stage, found) in enumerate(zip(stages, cells, strict=True)):
        with style(f"{title} {number}"):
            svg = _interactive(as_svg(_figure(lengths, found, scale)), lengths, found, scale)
        panels.append(Panel(stage.label, inline(svg, f"{title}, {stage.label}", role="group")))
    return Chart(title, caption, tuple(panels))


def _figure(lengths: Sequence[int], cells: Cells, scale: _Scale) -> Figure:
    high = _BELOW + _ROW_HEIGHT * _ROWS + _ABOVE
    figure = Figure(figsize=(_WIDTH, high))
    axes = figure.add_axes((0.19, _BELOW / high, 0.79, _ROW_HEIGHT * _ROWS / high))
    axes.set_xlim(0, len(lengths))
    axes.set_ylim(_ROWS, 0)
    axes.set_xticks(np.arange(len(lengths)) + 0.5, [str(length) for length in lengths])
    axes.set_yticks(np.arange(_ROWS) + 0.5, [f"{10 * row} %" for row in range(_ROWS)])
    axes.tick_params(length=0)
    axes.set_xlabel("prompt, tokens")
    axes.set_ylabel("place of the needle")
    axes.grid(visible=False)
    for column, length in enumerate(lengths):
        for row in range(_ROWS):
            _draw_cell(axes, column, row, cells.get((length, row)), scale)
            said = _said(length, row, cells.get((length, row)), scale)
            figure.text(0.01, 0.01, said, fontsize=10.5, va="bottom", gid=f"said-{column}-{row}")
    return figure


def _draw_cell(axes: Axes, column: int, row: int, cell: Cell | None, scale: _Scale) -> None:
    known = cell is not None and math.isfinite(cell.interval.value)
    level = scale.level(cell.interval.value) if cell is not None and known else 0
    axes.add_patch(
        Rectangle(
            (column, row),
            1,
            1,
            facecolor=LEVELS[level] if known else "none",
            edgecolor=INK,
            linewidth=0.4,
            hatch=None if known else "////",
            clip_on=False,
            gid=f"cell-{column}-{row}",
        )
    )
    text = scale.text(cell.interval.value) if cell is not None and known else ""
    axes.text(
        column + 0.5,
        row + 0.53,
        text or (MISSING if cell is None else "!"),
        color=INKS[level] if known else INK,
        fontsize=min(_LARGEST_TEXT, 10 * _LARGEST_TEXT / axes.get_xlim()[1]),
        ha="center",
        va="center",
        gid=f"value-{column}-{row}",
    )


def _said(length: int, row: int, cell: Cell | None, scale: _Scale) -> str:
    """Two lines: where, and what."""
    where = f"{length} tokens, needle at {100 * row // (_ROWS - 1)} %"
    if cell is None:
        return f"{where}\nnot measured: no prompts"
    found, prompts = cell.interval, f"{cell.prompts} prompt{'s' * (cell.prompts > 1)}"
    return f"{where}\n{scale.text(found.value)}{scale.unit} {scale.ends(found)}, {prompts}"


def _interactive(svg: str, lengths: Sequence[int], cells: Cells, scale: _Scale) -> str:
    """Each cell as a group that can be focused: its rectangle, its value, and what it says."""
    root = ET.fromstring(svg)
    parents = {child: parent for parent in root.iter() for child in parent}
    groups = {group.get("id", ""): group for group in root.iter(f"{_SVG}g")}
    for column, length in enumerate(lengths):
        for row in range(_ROWS):
            parts = [groups[f"{part}-{column}-{row}"] for part in ("cell", "value", "said")]
            group = ET.Element(f"{_SVG}g", {"class": "cell", "tabindex": "0", "role": "img"})
            said = _said(length, row, cells.get((length, row)), scale)
            ET.SubElement(group, f"{_SVG}title").text = said
            where = parents[parts[0]]
            where.insert(list(where).index(parts[0]), group)
            for part in parts:
                parents[part].remove(part)
                group.append(part)
            parts[2].set("class", "said")
    return ET.tostring(root, encoding="unicode")
