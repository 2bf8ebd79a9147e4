"""report.json with every number, and report.html: one file, no network, any screen."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ropepatch.errors import CheckpointError
from ropepatch.evals.as_json import interval_json, verdict_json
from ropepatch.evals.claims import Check, Claim, extended_length, headline
from ropepatch.evals.evaluation import Comparison, Evaluation, Json
from ropepatch.evals.page_ledger import ledger
from ropepatch.evals.page_perplexities import perplexity_tables
from ropepatch.evals.page_tables import cell, number_tables
from ropepatch.evals.page_verdicts import candidate_rows, method_grid
from ropepatch.evals.patches import TOGETHER
from ropepatch.evals.perplexity import perplexities_json
from ropepatch.evals.statistics import CONFIDENCE
from ropepatch.evals.verdict import Verdict
from ropepatch.extras import require_extra
from ropepatch.whole_files import write_whole

SCHEMA = 2  #: of report.json; rises when a reader of the old one would go wrong


@dataclass(frozen=True)
class _Report:
    """What both files tell."""

    stages: Sequence[Evaluation]
    comparisons: Sequence[Comparison]
    title: str
    notes: Sequence[str]
    claims: Sequence[Claim]
    checks: Sequence[Check]
    verdicts: Sequence[Verdict]


def write_report(
    stages: Sequence[Evaluation],
    comparisons: Sequence[Comparison],
    directory: Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    checks: Sequence[Check] = (),
    verdicts: Sequence[Verdict] = (),
) -> Path:
    """Write report.json and report.html into `directory`; the page's path.

    Each file is whole or as it was before. Raises CheckpointError when the directory takes no
    files; MissingExtraError, after report.json is written, without the extra `[eval]`.
    """
    report = _Report(stages, comparisons, title, notes, headline(stages, checks), checks, verdicts)
    numbers = json.dumps(_report_json(report), indent=2, allow_nan=False) + "\n"
    _write(directory / "report.json", numbers)
    require_extra("eval", "report.html")
    _write(directory / "report.html", _render(report))
    return directory / "report.html"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise CheckpointError(
            f"the report cannot be written to {path.parent} ({error.strerror}); name a directory "
            "that can be written and has room"
        ) from error


def _report_json(report: _Report) -> dict[str, Json]:
    """Every number of the report with its interval, and the configuration of every stage."""
    stages = report.stages
    return {
        "schema": SCHEMA,
        "title": report.title,
        "confidence": CONFIDENCE,
        "trained_length": stages[0].trained_length,
        "extended_length": extended_length(stages),
        "claims": [_claim_json(claim) for claim in report.claims],
        "stages": [_stage_json(stage, stages[0]) for stage in stages],
        "comparisons": [_comparison_json(comparison) for comparison in report.comparisons],
        "verdicts": [verdict_json(verdict) for verdict in report.verdicts],
        "checks": [asdict(check) for check in report.checks],
        "notes": list(report.notes),
    }


def _claim_json(claim: Claim) -> dict[str, Json]:
    return {
        "question": claim.question,
        "verdict": claim.verdict,
        "number": interval_json(claim.interval),
        "unit": claim.unit,
        "detail": claim.detail,
    }


def _stage_json(stage: Evaluation, base: Evaluation) -> dict[str, Json]:
    return {
        "label": stage.label,
        "protocol": stage.protocol,
        "configuration": dict(stage.configuration),
        "fixed_target_loss": [
            {
                "length": length,
                "loss": interval_json(stage.target_loss(length)),
                "context_gain": interval_json(stage.context_gain(length)),
            }
            for length in stage.lengths
        ],
        "loss_by_position": [
            {"from": first, "to": end, "loss": interval_json(stage.bin_loss((first, end)))}
            for first, end in stage.bins
        ],
        "tasks": {
            task: [_scores_json(stage, task, length) for length in stage.lengths]
            for task in stage.tasks
        },
        "perplexities": perplexities_json(base, stage),
    }


def _scores_json(stage: Evaluation, task: str, length: int) -> Json:
    asked = stage.asked(task, length)
    far = stage.score(task, length, beyond=stage.trained_length)
    return {
        "length": length,
        "score": interval_json(stage.score(task, length)),
        "score_beyond_trained_length": interval_json(far),
        "prompts": None if asked is None else len(asked.scores),
        "chance": None if asked is None else asked.chance,
    }


def _comparison_json(comparison: Comparison) -> dict[str, Json]:
    return {
        "before": comparison.before,
        "after": comparison.after,
        "within_trained_length": interval_json(comparison.within_trained),
        "fixed_target_loss": [
            {"length": length, "difference": interval_json(difference)}
            for length, difference in comparison.target_losses.items()
        ],
        "loss_by_position": [
            {"from": first, "to": end, "difference": interval_json(difference)}
            for (first, end), difference in comparison.bin_losses.items()
        ],
        "tasks": {
            task: [
                {"length": length, "difference": interval_json(difference)}
                for length, difference in by_length.items()
            ]
            for task, by_length in comparison.tasks.items()
        },
    }


def _render(report: _Report) -> str:
    # Only the page needs them; evaluating and comparing work without.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from ropepatch.evals.charts import draw_charts
    from ropepatch.evals.heat_map import draw_maps

    stages, verdicts = report.stages, report.verdicts
    candidates = candidate_rows(stages, verdicts)
    checked = {check.question for check in report.checks}
    environment = Environment(
        loader=PackageLoader("ropepatch.evals"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=report.title,
        # Of many candidates, the last one alone is not what a reader asks about.
        claims=[
            (claim, cell(claim.interval, signed="nats" in claim.unit))
            for claim in report.claims
            if not verdicts or claim.question in checked
        ],
        candidates=candidates,
        base=verdicts[0].base if verdicts else "",
        grid=method_grid(stages, candidates),
        charts=draw_charts(stages),
        maps=draw_maps(stages),
        together=TOGETHER,
        tables=[*number_tables(stages, report.comparisons), *perplexity_tables(stages)],
        ledger=ledger(stages),
        notes=report.notes,
        configuration=json.dumps([dict(stage.configuration) for stage in stages], indent=2),
    )
