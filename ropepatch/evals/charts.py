"""Charts as inline SVG that follows the page: its text colour, its palette, light or dark.

Matplotlib draws them with placeholder colours, which are then replaced by CSS variables. Stages
also differ in marker and line style, so that nothing is told by colour alone.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.statistics import Interval

_INK = "#010203"
_GRID = "#040506"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05")
_MARKERS = ("o", "s", "^", "D", "v")
_DASHES = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 2)))

_WIDTH = 5.2  #: inches, about a phone, so that text keeps its size there
_HEIGHT = 3.3
_LEGEND_ROW = 0.24
_LINEAR = 0.1  #: nats per token

_DODGE = 0.09  #: octaves between stages, so that bars do not hide one another

Points = Callable[[Evaluation], Mapping[int, Interval]]  #: by tokens; what is missing is absent
Finish = Callable[[Axes], None]


@dataclass(frozen=True)
class Chart:
    """One figure of the report."""

    title: str
    caption: str
    svg: str


def draw_charts(stages: Sequence[Evaluation]) -> list[Chart]:
    """The report's figures; retrieval only where it was measured."""
    charts = [_fixed_targets(stages), _context_gain(stages), _positions(stages)]
    return charts + ([_retrieval(stages)] if any("kv" in stage.tasks for stage in stages) else [])


def _fixed_targets(stages: Sequence[Evaluation]) -> Chart:
    title = "Loss of the same tokens"
    svg = _draw(
        stages,
        title,
        ("window, tokens", "loss, nats per token"),
        lambda stage: {length: stage.target_loss(length) for length in stage.lengths},
    )
    caption = (
        f"The last {stages[0].configuration['targets']} tokens of every window, the same at every "
        "length. Bars: 95 % over documents. Most of that spread is common to all points, so "
        "lengths are compared in the next figure."
    )
    return Chart(title, caption, svg)


def _context_gain(stages: Sequence[Evaluation]) -> Chart:
    reference = stages[0].reference_length
    title = "What a longer window changes"
    svg = _draw(
        stages,
        title,
        ("window, tokens", "change of loss, nats per token"),
        lambda stage: {length: stage.context_gain(length) for length in stage.lengths},
        _about_zero,
    )
    caption = (
        f"The same tokens against their own loss in {reference} tokens. Below 0 the longer window "
        f"helps; a bar that crosses 0 leaves it open. The scale is linear within ±{_LINEAR} and "
        "logarithmic outside. Bars: 95 % over documents, paired."
    )
    return Chart(title, caption, svg)


def _positions(stages: Sequence[Evaluation]) -> Chart:
    title = "Loss by position"
    svg = _draw(
        stages,
        title,
        ("position in the window, up to, tokens", "loss, nats per token"),
        lambda stage: {end: stage.bin_loss((first, end)) for first, end in stage.bins},
    )
    caption = (
        "Mean loss of the tokens between one point and the next, from one pass over each window. "
        "Positions hold different text; stages read the same. Bars: 95 % over documents."
    )
    return Chart(title, caption, svg)


def _retrieval(stages: Sequence[Evaluation]) -> Chart:
    title = "Retrieval"
    chance = next(it for stage in stages if (it := stage.chance("kv")) is not None)

    def finish(axes: Axes) -> None:
        axes.set_ylim(-0.03, 1.06)
        _level(axes, chance)
        where = axes.get_yaxis_transform()
        axes.text(0.01, chance + 0.015, f"chance {chance:.3f}", transform=where)

    svg = _draw(stages, title, ("prompt, tokens", "right answers, share"), _accuracies, finish)
    pairs = stages[0].configuration["pairs"]
    caption = (
        f"One of {pairs} keys scattered in real text is asked for; the answer is chosen among the "
        f"{pairs} values in the prompt. Bars: 95 % (Wilson)."
    )
    return Chart(title, caption, svg)


def _accuracies(stage: Evaluation) -> dict[int, Interval]:
    measured = {length: stage.score("kv", length) for length in stage.lengths}
    return {length: interval for length, interval in measured.items() if interval is not None}


def _draw(
    stages: Sequence[Evaluation],
    title: str,
    labels: tuple[str, str],
    points: Points,
    finish: Finish = lambda axes: None,
) -> str:
    """One chart with a series per stage over a logarithmic axis of tokens, as inline SVG."""
    with _style(title):
        figure = Figure(figsize=(_WIDTH, _HEIGHT + _LEGEND_ROW * len(stages)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        series = [points(stage) for stage in stages]
        for number, (stage, intervals) in enumerate(zip(stages, series, strict=True)):
            shift = 2 ** (_DODGE * (number - (len(stages) - 1) / 2))
            _plot(axes, number, stage.label, intervals, shift)
        _mark_lengths(axes, sorted(set().union(*series)), stages[0].trained_length)
        finish(axes)
        figure.legend(loc="outside upper left", handlelength=3.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), title)


def _style(title: str) -> AbstractContextManager[None]:
    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": title,  # ids are unique on the page and equal from run to run
            "font.family": "sans-serif",
            "font.size": 11,
            "text.color": _INK,
            "axes.edgecolor": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "grid.color": _GRID,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )


def _plot(
    axes: Axes, number: int, label: str, intervals: Mapping[int, Interval], shift: float
) -> None:
    values = [interval.value for interval in intervals.values()]
    below = [interval.value - interval.low for interval in intervals.values()]
    above = [interval.high - interval.value for interval in intervals.values()]
    style = number % len(_SERIES)
    axes.errorbar(
        [length * shift for length in intervals],
        values,
        yerr=[_finite(below), _finite(above)],
        label=label,
        color=_SERIES[style],
        marker=_MARKERS[style],
        linestyle=_DASHES[style],
        capsize=3,
        elinewidth=1,
    )


def _finite(lengths: Sequence[float]) -> list[float]:
    """Lengths of bars; 0 where an end is not known, as Matplotlib draws no point without a bar."""
    return [length if math.isfinite(length) else 0.0 for length in lengths]


def _mark_lengths(axes: Axes, lengths: Sequence[int], trained_length: int) -> None:
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda length, _: f"{length:.0f}")
    axes.axvline(trained_length, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    where = axes.get_xaxis_transform()
    label = f"trained to {trained_length}"
    axes.text(trained_length, 1.01, label, transform=where, ha="center", va="bottom")


def _about_zero(axes: Axes) -> None:
    """Gains are hundredths of a nat and failures whole nats; both have to be seen."""
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.5)
    axes.margins(y=0.1)
    low, high = axes.get_ylim()
    sizes = [size * 10.0**power for power in (-1, 0, 1) for size in (1, 2, 5)]
    marks = [-size for size in sizes] + [-0.05, 0.0, 0.05] + sizes
    axes.yaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        lambda change, _: f"{change:+g}".replace("-", "−") if change else "0"
    )
    _level(axes, 0.0)


def _level(axes: Axes, value: float) -> None:
    axes.axhline(value, color=_INK, linewidth=1, linestyle=(0, (1, 2)))


def _inline(svg: str, title: str) -> str:
    """The <svg> element alone: no fixed size, no metadata, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) xmlns="[^"]*"', r"\1", svg)
    svg = re.sub(r' xmlns:xlink="[^"]*"| width="[\d.]+pt"| height="[\d.]+pt"', "", svg)
    svg = re.sub(r"'DejaVu Sans',[^;\"]*sans-serif", "var(--font)", svg)
    # Matplotlib names its groups alike in every figure; a page may use an id once.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for placeholder, variable in {_INK: "ink", _GRID: "grid"}.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    for number, placeholder in enumerate(_SERIES):
        svg = svg.replace(placeholder, f"var(--series-{number})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
