"""The report's answers about candidates: a row for each, and a grid of method and factor."""

from collections.abc import Sequence
from dataclasses import dataclass

from ropepatch.evals.effective_length import EffectiveLength
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.page_tables import TableCell, cell
from ropepatch.evals.patches import factor_of, method_of
from ropepatch.evals.verdict import Verdict
from ropepatch.evals.wording import MISSING, show_length

SIGNS = {"improved": "✓", "no evidence": "?", "regressed": "✗"}


@dataclass(frozen=True)
class CandidateRow:
    """What is said of one candidate."""

    label: str
    word: str
    sign: str
    gain: TableCell  #: at the length that the candidate is made for
    price: TableCell
    relative: TableCell
    absolute: TableCell
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """Candidates by method (rows) and factor (columns); a cell without one is empty."""

    factors: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[CandidateRow, ...], ...]], ...]


def candidate_rows(stages: Sequence[Evaluation], verdicts: Sequence[Verdict]) -> list[CandidateRow]:
    """A row per verdict, in their order."""
    by_label = {stage.label: stage for stage in stages}
    return [_row(by_label[verdict.candidate], verdict) for verdict in verdicts]


def method_grid(stages: Sequence[Evaluation], rows: Sequence[CandidateRow]) -> Grid | None:
    """None unless methods or factors are compared."""
    by_label = {row.label: row for row in rows}
    placed = [
        (method, factor, by_label[stage.label])
        for stage in stages
        if stage.label in by_label
        and (method := method_of(stage)) is not None
        and (factor := factor_of(stage)) is not None
    ]
    methods = list(dict.fromkeys(method for method, _, _ in placed))
    factors = sorted({factor for _, factor, _ in placed})
    if len(methods) * len(factors) < 2:
        return None
    return Grid(
        tuple(f"×{factor:g}" for factor in factors),
        tuple(
            (
                method,
                tuple(
                    tuple(row for name, size, row in placed if (name, size) == (method, factor))
                    for factor in factors
                ),
            )
            for method in methods
        ),
    )


def _row(stage: Evaluation, verdict: Verdict) -> CandidateRow:
    return CandidateRow(
        label=verdict.candidate,
        word=verdict.word,
        sign=SIGNS[verdict.word],
        gain=_gain(verdict, stage.made_for),
        price=cell(verdict.price, signed=True),
        relative=_effective(verdict.relative),
        absolute=_effective(verdict.absolute),
        reasons=verdict.reasons,
    )


def _gain(verdict: Verdict, length: int) -> TableCell:
    if length not in verdict.gains:
        return TableCell(MISSING)
    shown = cell(verdict.gains[length], signed=True)
    return TableCell(shown.value, f"{shown.ends} at {length}")


def _effective(length: EffectiveLength) -> TableCell:
    value, *ends = show_length(length)
    return TableCell(value, ends[0] if ends else "not measurable")
