"""The report's tables of perplexities by named protocols, LongPPL among them."""

from collections.abc import Callable, Sequence

from ropepatch.evals.claims import multiple
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.page_tables import Table, TableCell, cell
from ropepatch.evals.perplexity import Perplexity, difference_to_base
from ropepatch.evals.wording import MISSING, show_context, show_documents, show_tokens

_Column = tuple[int, int]  #: (after, length)


def perplexity_tables(stages: Sequence[Evaluation]) -> list[Table]:
    """For every protocol: perplexity, bits per byte, differences to the base, and what was read."""
    names = [each.protocol for stage in stages for each in stage.perplexities]
    return [table for name in dict.fromkeys(names) for table in _tables(stages, name)]


def _tables(stages: Sequence[Evaluation], protocol: str) -> list[Table]:
    base = stages[0]
    found = [_by_column(stage, protocol) for stage in stages]
    # Of any stage: all of them read the same.
    read = {column: each for by in found for column, each in by.items()}
    headings = tuple(_heading(base, each) for each in read.values())

    def table(title: str, show: Callable[[Perplexity], TableCell], first: int = 0) -> Table:
        rows = tuple(
            (stage.label, tuple(show(by[c]) if c in by else TableCell(MISSING) for c in read))
            for stage, by in list(zip(stages, found, strict=True))[first:]
        )
        return Table(title, headings, rows)

    return [
        table(f"Perplexity by {protocol}", lambda each: cell(each.perplexity)),
        table(f"Bits per byte by {protocol}", lambda each: cell(each.bits_per_byte)),
        table(
            f"Loss by {protocol}, nats per token, minus {base.label}, paired",
            lambda each: cell(difference_to_base(base, each), signed=True),
            first=1,
        ),
        Table(
            f"What {protocol} reads",
            headings,
            (
                ("documents", tuple(TableCell(show_documents(each)) for each in read.values())),
                (
                    "tokens scored",
                    tuple(TableCell(str(each.scored_tokens)) for each in read.values()),
                ),
                (
                    "tokens before each",
                    tuple(TableCell(show_context(each)) for each in read.values()),
                ),
            ),
        ),
    ]


def _by_column(stage: Evaluation, protocol: str) -> dict[_Column, Perplexity]:
    return {(p.after, p.length): p for p in stage.perplexities if p.protocol == protocol}


def _heading(base: Evaluation, result: Perplexity) -> str:
    times = "" if result.after else f" ({multiple(base, result.length)})"
    return f"{show_tokens(result)}{times}"
