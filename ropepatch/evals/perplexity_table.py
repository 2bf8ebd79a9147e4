"""Perplexities by named protocols in the terminal: a table for every model and protocol."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.perplexity import Perplexity, difference_to_base
from ropepatch.evals.printing import plain_table, print_under
from ropepatch.evals.wording import show_context, show_documents, show_interval, show_tokens


def print_perplexities(stages: Sequence[Evaluation], console: Console | None = None) -> None:
    """Print perplexity by length as named protocols define it; a dash where no document is as long."""
    console = console or Console()
    for stage in stages:
        for protocol in dict.fromkeys(each.protocol for each in stage.perplexities):
            heading = f"Perplexity of {stage.label} by {protocol} [95 %]"
            print_under(heading, _table(stage, stages[0], protocol), console)


def _table(stage: Evaluation, base: Evaluation, protocol: str) -> Table:
    table = plain_table()
    last = "documents" if stage is base else "nats, minus base's"
    for column in ("tokens", "perplexity", "bits per byte", "scored", "context", last):
        table.add_column(column, justify="right")
    for each in stage.perplexities:
        if each.protocol == protocol:
            table.add_row(
                show_tokens(each),
                show_interval(each.perplexity),
                show_interval(each.bits_per_byte),
                str(each.scored_tokens),
                show_context(each),
                show_documents(each) if stage is base else _difference(base, each),
            )
    return table


def _difference(base: Evaluation, result: Perplexity) -> str:
    return show_interval(difference_to_base(base, result), signed=True)
