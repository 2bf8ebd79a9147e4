"""The report's tables of perplexities by named protocols, LongPPL among them."""

from collections.abc import Callable, Sequence

from ropepatch.evals.claims import multiple
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.page_tables import Table, TableCell, cell
from ropepatch.evals.perplexity import Perplexity, difference_to_base
from ropepatch.evals.wording import MISSING

_Column = tuple[int, int]  #: (after, length)


def perplexity_tables(stages: Sequence[Evaluation]) -> list[Table]:
    """For every protocol: perplexity, bits per byte, differences to the base, and what was read."""
    names = [each.protocol for stage in stages for each in stage.perplexities]
    return [table for name in dict.fromkeys(names) for table in _tables(stages, name)]


def _tables(stages: Sequence[Evaluation], protocol: str) -> list[Table]:
    base = stages[0]
    found = [_by_column(stage, protocol) for stage in stages]
    columns = list(dict.fromkeys(column for each in found for column in each))
    headings = tuple(_heading(base, *column) for column in columns)

    def table(title: str, show: Callable[[Perplexity], TableCell], first: int = 0) -> Table:
        rows = tuple(
            (stage.label, tuple(show(by[c]) if c in by else TableCell(MISSING) for c in columns))
            for stage, by in list(zip(stages, found, strict=True))[first:]
        )
        return Table(title, headings, rows)

    some = next(each for each in found if each)
    read = [some[column] for column in columns if column in some]
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
                ("documents", tuple(TableCell(_documents(each)) for each in read)),
                ("tokens scored", tuple(TableCell(str(each.scored_tokens)) for each in read)),
                ("tokens before each", tuple(TableCell(_context(each)) for each in read)),
            ),
        ),
    ]


def _by_column(stage: Evaluation, protocol: str) -> dict[_Column, Perplexity]:
    return {(p.after, p.length): p for p in stage.perplexities if p.protocol == protocol}


def _heading(base: Evaluation, after: int, length: int) -> str:
    """A window's tokens, or those that it adds to the next shorter one, as positions are named."""
    return f"{after}–{length - 1}" if after else f"{length} ({multiple(base, length)})"


def _documents(result: Perplexity) -> str:
    return f"{len(result.present)} of {len(result.documents)}"


def _context(result: Perplexity) -> str:
    return MISSING if result.mean_context is None else f"{result.mean_context:.0f}"
