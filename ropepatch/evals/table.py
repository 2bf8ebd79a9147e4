"""The same numbers as the report's, in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ropepatch.evals.claims import Check, Claim, headline
from ropepatch.evals.evaluation import Comparison, Evaluation
from ropepatch.evals.wording import MISSING, show_interval, task_name, task_title, tasks_of

_STYLES = {"yes": "green", "no": "red", "unclear": "yellow", "not measured": "dim"}


def print_table(
    stages: Sequence[Evaluation],
    comparisons: Sequence[Comparison] = (),
    *,
    checks: Sequence[Check] = (),
    console: Console | None = None,
) -> None:
    """Print losses, gains, task scores and the headline, with 95 % intervals."""
    console = console or Console()
    tables = [
        _losses(stages),
        _gains(stages),
        *(_scores(stages, task) for task in tasks_of(stages)),
    ]
    tables += [_differences(comparison) for comparison in comparisons]
    for table in [*tables, _claims(headline(stages, checks))]:
        # Not as the table's own title, which wraps at the table's width.
        title, table.title = table.title or "", None
        console.print(Text(str(title), style="bold"))
        console.print(table)
        console.print()


def _table(title: str) -> Table:
    return Table(
        title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _by_length(title: str, stages: Sequence[Evaluation]) -> Table:
    table = _table(title)
    table.add_column("tokens", justify="right", no_wrap=True)
    for stage in stages:
        table.add_column(Text(stage.label), justify="right")
    return table


def _losses(stages: Sequence[Evaluation]) -> Table:
    targets = stages[0].configuration["targets"]
    trained = f"trained to {stages[0].trained_length}"
    title = f"Loss of the same last {targets} tokens, nats per token [95 %], {trained}"
    table = _by_length(title, stages)
    for length in stages[0].lengths:
        cells = [show_interval(stage.target_loss(length)) for stage in stages]
        table.add_row(str(length), *cells)
    return table


def _gains(stages: Sequence[Evaluation]) -> Table:
    title = f"The same, minus the loss in {stages[0].reference_length} tokens (paired) [95 %]"
    table = _by_length(title, stages)
    for length in stages[0].lengths:
        cells = [
            show_interval(stage.context_gain(length), signed=True)
            if length != stage.reference_length
            else "0"
            for stage in stages
        ]
        table.add_row(str(length), *cells)
    return table


def _scores(stages: Sequence[Evaluation], task: str) -> Table:
    table = _by_length(f"{task_title(task, stages)} [95 %]", stages)
    for length in stages[0].lengths:
        cells = [show_interval(stage.score(task, length), digits=2) for stage in stages]
        table.add_row(str(length), *cells)
    return table


def _differences(comparison: Comparison) -> Table:
    title = f"{comparison.after} minus {comparison.before} (paired) [95 %]"
    table = _table(title)
    for column in ("tokens", "loss, nats per token", *map(task_name, comparison.tasks)):
        table.add_column(column, justify="right")
    for length, loss in comparison.target_losses.items():
        scores = [
            show_interval(by_length.get(length), digits=2, signed=True)
            for by_length in comparison.tasks.values()
        ]
        table.add_row(str(length), show_interval(loss, signed=True), *scores)
    return table


def _claims(claims: Sequence[Claim]) -> Table:
    table = _table("Answers")
    table.add_column("question")
    table.add_column("verdict", no_wrap=True)
    table.add_column("number [95 %]", justify="right")
    for claim in claims:
        style = _STYLES[claim.verdict]
        number = MISSING
        if claim.interval is not None:
            signed = claim.unit == "nats per token"
            number = f"{show_interval(claim.interval, signed=signed)}\n{claim.unit}"
        question = Text.assemble(claim.question, "\n", (claim.detail, "dim"))
        table.add_row(question, Text(claim.verdict, style=style), number)
    return table
