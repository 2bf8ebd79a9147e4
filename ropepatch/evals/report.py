"""report.json with every number, and report.html: one file, no network, any screen."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ropepatch.errors import CheckpointError, ConfigError
from ropepatch.evals.claims import Check, Claim, extended_length, headline, multiple
from ropepatch.evals.evaluation import Comparison, Evaluation, Json
from ropepatch.evals.statistics import CONFIDENCE, Interval
from ropepatch.evals.wording import (
    MISSING,
    show_number,
    show_range,
    task_name,
    task_title,
    tasks_of,
)
from ropepatch.whole_files import write_whole

SCHEMA = 2  #: of report.json; rises when a reader of the old one would go wrong


@dataclass(frozen=True)
class _Cell:
    value: str
    ends: str


@dataclass(frozen=True)
class _Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[_Cell, ...]], ...]


def write_report(
    stages: Sequence[Evaluation],
    comparisons: Sequence[Comparison],
    directory: Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    checks: Sequence[Check] = (),
) -> Path:
    """Write report.json and report.html into `directory`; the page's path.

    Each file is whole or as it was before. Raises CheckpointError when the directory takes no
    files.
    """
    numbers = _report_json(stages, comparisons, title=title, notes=notes, checks=checks)
    page = _render(stages, comparisons, title=title, notes=notes, checks=checks)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(
            directory / "report.json", json.dumps(numbers, indent=2, allow_nan=False) + "\n"
        )
        write_whole(directory / "report.html", page)
    except OSError as error:
        raise CheckpointError(
            f"the report cannot be written to {directory} ({error.strerror}); name a directory "
            "that can be written and has room"
        ) from error
    return directory / "report.html"


def _report_json(
    stages: Sequence[Evaluation],
    comparisons: Sequence[Comparison],
    *,
    title: str,
    notes: Sequence[str] = (),
    checks: Sequence[Check] = (),
) -> dict[str, Json]:
    """Every number of the report with its interval, and the configuration of every stage."""
    claims = headline(stages, checks)
    return {
        "schema": SCHEMA,
        "title": title,
        "confidence": CONFIDENCE,
        "trained_length": stages[0].trained_length,
        "extended_length": extended_length(stages),
        "claims": [_claim_json(claim) for claim in claims],
        "stages": [_stage_json(stage) for stage in stages],
        "comparisons": [_comparison_json(comparison) for comparison in comparisons],
        "checks": [asdict(check) for check in checks],
        "notes": list(notes),
    }


def _claim_json(claim: Claim) -> dict[str, Json]:
    return {
        "question": claim.question,
        "verdict": claim.verdict,
        "number": _interval_json(claim.interval),
        "unit": claim.unit,
        "detail": claim.detail,
    }


def _interval_json(interval: Interval | None) -> Json:
    """Numbers as JSON; None for what was not measured, null for an end that is not known."""
    if interval is None:
        return None
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: number if math.isfinite(number) else None for name, number in ends.items()}


def _stage_json(stage: Evaluation) -> dict[str, Json]:
    return {
        "label": stage.label,
        "protocol": stage.protocol,
        "configuration": dict(stage.configuration),
        "fixed_target_loss": [
            {
                "length": length,
                "loss": _interval_json(stage.target_loss(length)),
                "context_gain": _interval_json(stage.context_gain(length)),
            }
            for length in stage.lengths
        ],
        "loss_by_position": [
            {"from": first, "to": end, "loss": _interval_json(stage.bin_loss((first, end)))}
            for first, end in stage.bins
        ],
        "tasks": {
            task: [_scores_json(stage, task, length) for length in stage.lengths]
            for task in stage.tasks
        },
    }


def _scores_json(stage: Evaluation, task: str, length: int) -> Json:
    asked = stage.asked(task, length)
    far = stage.score(task, length, beyond=stage.trained_length)
    return {
        "length": length,
        "score": _interval_json(stage.score(task, length)),
        "score_beyond_trained_length": _interval_json(far),
        "prompts": None if asked is None else len(asked.scores),
        "chance": None if asked is None else asked.chance,
    }


def _comparison_json(comparison: Comparison) -> dict[str, Json]:
    return {
        "before": comparison.before,
        "after": comparison.after,
        "within_trained_length": _interval_json(comparison.within_trained),
        "fixed_target_loss": [
            {"length": length, "difference": _interval_json(difference)}
            for length, difference in comparison.target_losses.items()
        ],
        "loss_by_position": [
            {"from": first, "to": end, "difference": _interval_json(difference)}
            for (first, end), difference in comparison.bin_losses.items()
        ],
        "tasks": {
            task: [
                {"length": length, "difference": _interval_json(difference)}
                for length, difference in by_length.items()
            ]
            for task, by_length in comparison.tasks.items()
        },
    }


def _render(
    stages: Sequence[Evaluation],
    comparisons: Sequence[Comparison],
    *,
    title: str,
    notes: Sequence[str],
    checks: Sequence[Check],
) -> str:
    try:
        # Only the page needs them; evaluating and comparing work without.
        from jinja2 import Environment, PackageLoader, StrictUndefined

        from ropepatch.evals.charts import draw_charts
    except ImportError as error:
        raise ConfigError(
            f"the report needs {error.name}, which is not installed; run pip install "
            "'ropepatch[eval]'"
        ) from error
    environment = Environment(
        loader=PackageLoader("ropepatch.evals"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        stages=stages,
        claims=[
            (claim, _cell(claim.interval, signed="nats" in claim.unit))
            for claim in headline(stages, checks)
        ],
        charts=draw_charts(stages),
        tables=_tables(stages, comparisons),
        notes=notes,
        configuration=json.dumps([dict(stage.configuration) for stage in stages], indent=2),
    )


def _tables(stages: Sequence[Evaluation], comparisons: Sequence[Comparison]) -> list[_Table]:
    labels = tuple(stage.label for stage in stages)
    first = stages[0]
    rows = [(length, f"{length} ({multiple(first, length)})") for length in first.lengths]
    losses = [(name, tuple(_cell(s.target_loss(n)) for s in stages)) for n, name in rows]
    gains = [(name, tuple(_gain_cell(s, n) for s in stages)) for n, name in rows]
    bins = [
        (f"{start}–{end - 1}", tuple(_cell(s.bin_loss((start, end))) for s in stages))
        for start, end in first.bins
    ]
    return [
        _Table("Loss of the same tokens, nats per token", labels, tuple(losses)),
        _Table(
            f"Change from {first.reference_length} tokens, nats per token, paired",
            labels,
            tuple(gains),
        ),
        *(_scores_table(stages, task) for task in tasks_of(stages)),
        _Table("Loss by position, nats per token", labels, tuple(bins)),
        *(_comparison_table(comparison) for comparison in comparisons),
    ]


def _scores_table(stages: Sequence[Evaluation], task: str) -> _Table:
    rows = tuple(
        (
            f"{length} ({multiple(stages[0], length)})",
            tuple(_cell(stage.score(task, length)) for stage in stages),
        )
        for length in stages[0].lengths
    )
    return _Table(task_title(task, stages), tuple(stage.label for stage in stages), rows)


def _comparison_table(comparison: Comparison) -> _Table:
    tasks = list(comparison.tasks) or ["kv"]
    rows = tuple(
        (
            str(length),
            (
                _cell(loss, signed=True),
                *(_cell(comparison.tasks.get(t, {}).get(length), signed=True) for t in tasks),
            ),
        )
        for length, loss in comparison.target_losses.items()
    )
    title = f"{comparison.after} minus {comparison.before}, paired"
    columns = ("loss, nats per token", *(f"{task_name(task)}, share" for task in tasks))
    return _Table(title, columns, rows)


def _gain_cell(stage: Evaluation, length: int) -> _Cell:
    if length == stage.reference_length:
        return _Cell("0", "reference")
    return _cell(stage.context_gain(length), signed=True)


def _cell(interval: Interval | None, *, signed: bool = False) -> _Cell:
    if interval is None:
        return _Cell(MISSING, "")
    return _Cell(show_number(interval.value, signed=signed), show_range(interval, signed=signed))
