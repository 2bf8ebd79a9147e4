"""The same numbers as the report's, in the terminal."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ropepatch.evals.claims import Check, Claim, headline
from ropepatch.evals.evaluation import Comparison, Evaluation
from ropepatch.evals.printing import plain_table, print_under
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
        *(_differences(comparison) for comparison in comparisons),
        ("Answers", _claims(headline(stages, checks))),
    ]
    for heading, table in tables:
        print_under(heading, table, console)


def _by_length(stages: Sequence[Evaluation], show: Callable[[Evaluation, int], str]) -> Table:
    table = plain_table()
    table.add_column("tokens", justify="right", no_wrap=True)
    for stage in stages:
        table.add_column(Text(stage.label), justify="right")
    for length in stages[0].lengths:
        table.add_row(str(length), *(show(stage, length) for stage in stages))
    return table


def _losses(stages: Sequence[Evaluation]) -> tuple[str, Table]:
    targets = stages[0].configuration["targets"]
    trained = f"trained to {stages[0].trained_length}"
    heading = f"Loss of the same last {targets} tokens, nats per token [95 %], {trained}"
    return heading, _by_length(stages, lambda stage, n: show_interval(stage.target_loss(n)))


def _gains(stages: Sequence[Evaluation]) -> tuple[str, Table]:
    heading = f"The same, minus the loss in {stages[0].reference_length} tokens (paired) [95 %]"
    return heading, _by_length(stages, _gain)


def _gain(stage: Evaluation, length: int) -> str:
    if length == stage.reference_length:
        return "0"
    return show_interval(stage.context_gain(length), signed=True)


def _scores(stages: Sequence[Evaluation], task: str) -> tuple[str, Table]:
    def show(stage: Evaluation, length: int) -> str:
        return show_interval(stage.score(task, length), digits=2)

    return f"{task_title(task, stages)} [95 %]", _by_length(stages, show)


def _differences(comparison: Comparison) -> tuple[str, Table]:
    table = plain_table()
    for column in ("tokens", "loss, nats per token", *map(task_name, comparison.tasks)):
        table.add_column(column, justify="right")
    for length, loss in comparison.target_losses.items():
        scores = [
            show_interval(by_length.get(length), digits=2, signed=True)
            for by_length in comparison.tasks.values()
        ]
        table.add_row(str(length), show_interval(loss, signed=True), *scores)
    return f"{comparison.after} minus {comparison.before} (paired) [95 %]", table


def _claims(claims: Sequence[Claim]) -> Table:
    table = plain_table()
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
