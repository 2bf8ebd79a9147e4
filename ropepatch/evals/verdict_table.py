"""Verdicts in the terminal: a row for every model, then the reasons in words."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ropepatch.evals.claims import PRICE_TOLERANCE
from ropepatch.evals.effective_length import ABSOLUTE, absolute_length, relative_length
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.printing import plain_table, print_under
from ropepatch.evals.statistics import Interval, mean_of_tasks
from ropepatch.evals.verdict import Verdict
from ropepatch.evals.wording import MISSING, show_interval, show_length, task_name

_STYLES = {"improved": "green", "no evidence": "yellow", "regressed": "red"}


def print_verdicts(
    stages: Sequence[Evaluation], verdicts: Sequence[Verdict], console: Console | None = None
) -> None:
    """Print one row per model, the base first, and why each verdict is as it is."""
    console = console or Console()
    trained = stages[0].trained_length
    heading = f"Against {stages[0].label}, trained to {trained} tokens [95 %]"
    table = plain_table()
    table.add_column("model")
    table.add_column("verdict", no_wrap=True)
    for column in ("effective\nlength", "gain\nnats/token", "price\nnats/token", "score"):
        table.add_column(column, justify="right", no_wrap=True)
    by_label = {verdict.candidate: verdict for verdict in verdicts}
    for stage in stages:
        verdict = by_label.get(stage.label)
        table.add_row(Text(stage.label), *_cells(stage, verdict))
    print_under(heading, table, console)
    for verdict in verdicts:
        style = _STYLES[verdict.word]
        console.print(Text.assemble(verdict.candidate, ": ", (verdict.word, f"bold {style}")))
        for reason in verdict.reasons:
            console.print(Text(f"  {reason}"))
    console.print(Text(_notes(stages), style="dim"))


def _cells(stage: Evaluation, verdict: Verdict | None) -> list[str | Text]:
    length = stage.made_for
    score = _score(stage, length)
    effective = "\n".join(show_length(relative_length(stage)))
    if verdict is None:
        return ["base", effective, MISSING, MISSING, score]
    gain = verdict.gains.get(length)
    return [
        Text(verdict.word, style=_STYLES[verdict.word]),
        effective,
        MISSING if gain is None else f"{_two_lines(gain)}\nin {length}",
        _two_lines(verdict.price),
        score,
    ]


def _two_lines(interval: Interval) -> str:
    return show_interval(interval, signed=True).replace(" ", "\n")


def _score(stage: Evaluation, length: int) -> str:
    """Of the one task at a length, or the plain mean of several, as RULER has it."""
    asked = {name: found[length] for name, found in stage.tasks.items() if length in found}
    if not asked:
        return MISSING
    if len(asked) == 1:
        (name,) = asked
        score, what = stage.score(name, length), task_name(name)
    else:
        scores = [each.scores for each in asked.values()]
        score, what = mean_of_tasks(scores, seed=stage.seed), f"{len(asked)} tasks"
    shown = show_interval(score, digits=2).replace(" ", "\n")
    return f"{shown}\n{what}\nin {length}"


def _notes(stages: Sequence[Evaluation]) -> str:
    first = stages[0]
    chances = [f"{task_name(task)} {first.chance(task):.3f}" for task in first.tasks]
    lines = [
        f"\nlengths measured: {', '.join(map(str, first.lengths))} tokens",
        "effective length: up to where 85 % of the model's own short score is kept",
        *(
            f"  not measurable for {stage.label}: {length.reason}"
            for stage in stages
            if (length := relative_length(stage)).reason
        ),
        f"  up to {ABSOLUTE:.1%} (RULER's): "
        + ", ".join(
            f"{stage.label} {' '.join(show_length(absolute_length(stage)))}" for stage in stages
        ),
        f"gain: loss of the same tokens, minus the base's in {first.reference_length}; below 0 is better",
        f"price: loss within {first.trained_length} tokens, minus the base's; up to {PRICE_TOLERANCE} "
        "counts as kept",
    ]
    if chances:
        lines.append(f"guessing scores: {', '.join(chances)}")
    return "\n".join(lines)
