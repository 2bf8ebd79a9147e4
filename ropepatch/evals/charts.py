"""Line charts of the report: losses, context gain, scores, each with its intervals.

Stages differ in marker and line style too, so that nothing is told by colour alone. More stages than
a reader can follow in one drawing get a panel per method, each with the base and on the same scale.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ropepatch.evals.drawing import INK, SERIES, Chart, Panel, as_svg, inline, style
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.patches import by_method
from ropepatch.evals.statistics import Interval, mean_of_tasks
from ropepatch.evals.wording import task_name, tasks_of

_MARKERS = ("o", "s", "^", "D", "v")
_DASHES = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 2)))

_WIDTH, _PANEL_WIDTH = 4.6, 3.6  #: inches; about a phone, so that text keeps its size there
_HEIGHT = 3.1
_LEGEND_ROW = 0.24
_LINEAR = 0.1  #: nats per token

_DODGE = 0.09  #: octaves between stages, so that bars do not hide one another

Points = Callable[[Evaluation], Mapping[int, Interval]]  #: by tokens; what is missing is absent
Finish = Callable[[Axes], None]


@dataclass(frozen=True)
class _Kind:
    """What the panels of a chart have in common."""

    title: str
    labels: tuple[str, str]
    points: Points
    finish: Finish = lambda axes: None


def draw_charts(stages: Sequence[Evaluation]) -> list[Chart]:
    """Losses by window and by position, context gain, and scores where anything was asked."""
    charts = [_fixed_targets(stages), _context_gain(stages), _positions(stages)]
    return charts + ([_scores(stages)] if any(stage.tasks for stage in stages) else [])


def _fixed_targets(stages: Sequence[Evaluation]) -> Chart:
    caption = (
        f"The last {stages[0].configuration['targets']} tokens of every window, the same at every "
        "length. Bars: 95 % over documents. Most of that spread is common to all points, so "
        "lengths are compared in the next figure."
    )
    kind = _Kind(
        "Loss of the same tokens",
        ("window, tokens", "loss, nats per token"),
        lambda stage: {length: stage.target_loss(length) for length in stage.lengths},
    )
    return _chart(stages, kind, caption)


def _context_gain(stages: Sequence[Evaluation]) -> Chart:
    caption = (
        f"The same tokens against their own loss in {stages[0].reference_length} tokens. Below 0 "
        "the longer window helps; a bar that crosses 0 leaves it open. The scale is linear within "
        f"±{_LINEAR} and logarithmic outside. Bars: 95 % over documents, paired."
    )
    kind = _Kind(
        "What a longer window changes",
        ("window, tokens", "change of loss, nats per token"),
        lambda stage: {length: stage.context_gain(length) for length in stage.lengths},
        _about_zero,
    )
    return _chart(stages, kind, caption)


def _positions(stages: Sequence[Evaluation]) -> Chart:
    caption = (
        "Mean loss of the tokens between one point and the next, from one pass over each window. "
        "Positions hold different text; stages read the same. Bars: 95 % over documents."
    )
    kind = _Kind(
        "Loss by position",
        ("position in the window, up to, tokens", "loss, nats per token"),
        lambda stage: {end: stage.bin_loss((first, end)) for first, end in stage.bins},
    )
    return _chart(stages, kind, caption)


def _scores(stages: Sequence[Evaluation]) -> Chart:
    tasks = tasks_of(stages)
    chances = [it for task in tasks for stage in stages if (it := stage.chance(task)) is not None]
    chance = sum(chances) / len(chances)

    def finish(axes: Axes) -> None:
        axes.set_ylim(-0.03, 1.06)
        _level(axes, chance)
        where = axes.get_yaxis_transform()
        axes.text(0.01, chance + 0.015, f"chance {chance:.3f}", transform=where)

    caption = "Bars: 95 % over prompts. Guessing gives what the dotted line shows."
    title = "Retrieval"
    if tasks == ["kv"]:
        pairs = stages[0].configuration["pairs"]
        caption = (
            f"One of {pairs} keys scattered in real text is asked for; the answer is chosen among "
            f"the {pairs} values in the prompt. Bars: 95 % (Wilson)."
        )
    elif len(tasks) == 1:
        title = f"Score of {task_name(tasks[0])}"
    else:
        title = "Mean score of the tasks"
        caption = f"Plain mean of {', '.join(map(task_name, tasks))}. {caption}"

    def points(stage: Evaluation) -> dict[int, Interval]:
        means = {length: _mean_score(stage, tasks, length) for length in stage.lengths}
        return {length: mean for length, mean in means.items() if mean is not None}

    kind = _Kind(title, ("prompt, tokens", "right answers, share"), points, finish)
    return _chart(stages, kind, caption)


def _mean_score(stage: Evaluation, tasks: Sequence[str], length: int) -> Interval | None:
    """None unless all tasks were asked: a mean of fewer is another quantity."""
    if len(tasks) == 1:
        return stage.score(tasks[0], length)
    asked = [stage.asked(task, length) for task in tasks]
    scores = [each.scores for each in asked if each is not None]
    return mean_of_tasks(scores, seed=stage.seed) if len(scores) == len(tasks) else None


def _chart(stages: Sequence[Evaluation], kind: _Kind, caption: str) -> Chart:
    series = {id(stage): kind.points(stage) for stage in stages}
    groups = by_method(stages)
    limits = _limits(series.values()) if len(groups) > 1 else None
    legend_rows = max(len(members) for _, members in groups)
    panels = []
    for number, (name, members) in enumerate(groups):
        with style(f"{kind.title} {number}"):
            drawn = [(stage.label, series[id(stage)]) for stage in members]
            figure = _figure(drawn, kind, limits, stages[0].trained_length, legend_rows)
            label = f"{kind.title}, {name}" if name else kind.title
            panels.append(Panel(name, inline(as_svg(figure), label)))
    return Chart(kind.title, caption, tuple(panels))


def _limits(series: Iterable[Mapping[int, Interval]]) -> tuple[float, float] | None:
    """What panels that are to be compared span; None where nothing is finite."""
    ends = [
        end
        for intervals in series
        for interval in intervals.values()
        for end in (interval.value, interval.low, interval.high)
        if math.isfinite(end)
    ]
    if not ends:
        return None
    margin = 0.05 * (max(ends) - min(ends)) or 0.1
    return min(ends) - margin, max(ends) + margin


def _figure(
    drawn: Sequence[tuple[str, Mapping[int, Interval]]],
    kind: _Kind,
    limits: tuple[float, float] | None,
    trained_length: int,
    legend_rows: int,
) -> Figure:
    """A series per stage over a logarithmic axis of tokens."""
    width = _WIDTH if limits is None else _PANEL_WIDTH
    size = (width, _HEIGHT + _LEGEND_ROW * legend_rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_xlabel(kind.labels[0])
    axes.set_ylabel(kind.labels[1])
    for number, (label, intervals) in enumerate(drawn):
        shift = 2 ** (_DODGE * (number - (len(drawn) - 1) / 2))
        _plot(axes, number, label, intervals, shift)
    if limits is not None:
        axes.set_ylim(limits)
    _mark_lengths(axes, sorted(set().union(*(points for _, points in drawn))), trained_length)
    kind.finish(axes)
    figure.legend(loc="outside upper left", handlelength=3.5)
    return figure


def _plot(
    axes: Axes, number: int, label: str, intervals: Mapping[int, Interval], shift: float
) -> None:
    values = [interval.value for interval in intervals.values()]
    below = [interval.value - interval.low for interval in intervals.values()]
    above = [interval.high - interval.value for interval in intervals.values()]
    kind = number % len(SERIES)
    axes.errorbar(
        [length * shift for length in intervals],
        values,
        yerr=[_finite(below), _finite(above)],
        label=label,
        color=SERIES[kind],
        marker=_MARKERS[kind],
        linestyle=_DASHES[kind],
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
    axes.axvline(trained_length, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    where = axes.get_xaxis_transform()
    label = f"trained to {trained_length}"
    axes.text(trained_length, 1.01, label, transform=where, ha="center", va="bottom")


def _about_zero(axes: Axes) -> None:
    """Gains are hundredths of a nat and failures whole nats; both have to be seen."""
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.5)
    axes.margins(y=0.1)
    low, high = axes.get_ylim()
    sizes = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    marks = [-size for size in sizes] + [-0.05, 0.0, 0.05] + sizes
    axes.yaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        lambda change, _: f"{change:+g}".replace("-", "−") if change else "0"
    )
    _level(axes, 0.0)


def _level(axes: Axes, value: float) -> None:
    axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (1, 2)))
