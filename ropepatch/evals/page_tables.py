"""The report's tables: a row per stage, so that many stages make a long page and not a wide one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ropepatch.evals.claims import multiple
from ropepatch.evals.evaluation import Comparison, Evaluation
from ropepatch.evals.statistics import Interval
from ropepatch.evals.wording import (
    MISSING,
    show_number,
    show_range,
    task_name,
    task_title,
    tasks_of,
)


@dataclass(frozen=True)
class TableCell:
    """A number and its interval, as text."""

    value: str
    ends: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[TableCell, ...]], ...]


def number_tables(stages: Sequence[Evaluation], comparisons: Sequence[Comparison]) -> list[Table]:
    """Every number that the charts show, and the differences that were asked for."""
    first = stages[0]
    bins = tuple(f"{start}–{end - 1}" for start, end in first.bins)
    return [
        _by_length("Loss of the same tokens, nats per token", stages, _loss_cell),
        _by_length(
            f"Change from {first.reference_length} tokens, nats per token, paired",
            stages,
            _gain_cell,
        ),
        *(_scores(stages, task) for task in tasks_of(stages)),
        Table(
            "Loss by position, nats per token",
            bins,
            tuple((s.label, tuple(cell(s.bin_loss(each)) for each in s.bins)) for s in stages),
        ),
        *(_differences(comparisons, task) for task in ("", *_compared(comparisons))),
    ]


def cell(interval: Interval | None, *, signed: bool = False) -> TableCell:
    """An interval, or a dash for what was not measured."""
    if interval is None:
        return TableCell(MISSING)
    ends = show_range(interval, signed=signed)
    return TableCell(show_number(interval.value, signed=signed), ends)


def _by_length(
    title: str, stages: Sequence[Evaluation], show: Callable[[Evaluation, int], TableCell]
) -> Table:
    lengths = stages[0].lengths
    columns = tuple(f"{length} ({multiple(stages[0], length)})" for length in lengths)
    rows = tuple((s.label, tuple(show(s, length) for length in lengths)) for s in stages)
    return Table(title, columns, rows)


def _loss_cell(stage: Evaluation, length: int) -> TableCell:
    return cell(stage.target_loss(length))


def _gain_cell(stage: Evaluation, length: int) -> TableCell:
    if length == stage.reference_length:
        return TableCell("0", "reference")
    return cell(stage.context_gain(length), signed=True)


def _scores(stages: Sequence[Evaluation], task: str) -> Table:
    title = task_title(task, stages)
    return _by_length(title, stages, lambda stage, length: cell(stage.score(task, length)))


def _compared(comparisons: Sequence[Comparison]) -> list[str]:
    return list(dict.fromkeys(task for each in comparisons for task in each.tasks))


def _differences(comparisons: Sequence[Comparison], task: str) -> Table:
    """Differences of a task's scores, or of losses for no task, a row per comparison."""
    name = (
        f"{task_name(task).capitalize()}, share"
        if task
        else "Loss of the same tokens, nats per token"
    )
    found = [each.tasks.get(task, {}) if task else each.target_losses for each in comparisons]
    lengths = sorted({length for each in found for length in each})
    bases = {each.before for each in comparisons}
    return Table(
        f"{name}, minus {bases.pop() if len(bases) == 1 else 'its base'}, paired",
        tuple(map(str, lengths)),
        tuple(
            (each.after, tuple(cell(numbers.get(n), signed=True) for n in lengths))
            for each, numbers in zip(comparisons, found, strict=True)
        ),
    )
