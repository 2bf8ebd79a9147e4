"""results.json in the shape of lm-evaluation-harness: its top-level keys and its names of metrics.

Of several models, each has tasks of its own, named "LABEL: TASK". A metric is a length, `4096,none`;
its standard error, `4096_stderr,none`, is half the 95 % interval over 1.96.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ropepatch import __version__
from ropepatch.evals.as_json import interval_json, verdict_json
from ropepatch.evals.evaluation import Evaluation, Json
from ropepatch.evals.perplexity import perplexities_json
from ropepatch.evals.statistics import Interval, Z
from ropepatch.evals.verdict import Verdict
from ropepatch.whole_files import write_whole

_LOSS = "fixed_target_loss"


def write_results(
    stages: Sequence[Evaluation],
    verdicts: Sequence[Verdict],
    directory: Path,
) -> Path:
    """Write results.json into a directory; its path."""
    content = results_json(stages, verdicts)
    path = directory / "results.json"
    write_whole(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    return path


def results_json(stages: Sequence[Evaluation], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything as JSON."""
    tasks = {
        name if len(stages) == 1 else f"{stage.label}: {name}": (stage, name)
        for stage in stages
        for name in [_LOSS, *stage.tasks, *_protocols(stage)]
    }
    first = stages[0]
    return {
        "results": {
            key: {"alias": key, **_metrics(stage, name)} for key, (stage, name) in tasks.items()
        },
        "configs": {
            key: {"task": name, "model": stage.label, **stage.configuration}
            for key, (stage, name) in tasks.items()
        },
        "versions": dict.fromkeys(tasks, __version__),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {
            key: {metric.partition(",")[0]: name in stage.tasks for metric in _lengths(stage)}
            for key, (stage, name) in tasks.items()
        },
        "n-samples": {key: _counts(stage, name) for key, (stage, name) in tasks.items()},
        "config": {"model": "ropepatch", "model_args": first.label, "seed": first.seed},
        "date": datetime.datetime.now(datetime.UTC).timestamp(),
        "git_hash": None,
        "transformers_version": transformers.__version__,
        "torch_version": str(torch.__version__),
        "ropepatch_version": __version__,
        "protocol": first.protocol,
        "verdicts": [verdict_json(verdict) for verdict in verdicts],
        "perplexities": {stage.label: perplexities_json(first, stage) for stage in stages},
    }


def _lengths(stage: Evaluation) -> list[str]:
    return [f"{length},none" for length in stage.lengths]


def _protocols(stage: Evaluation) -> list[str]:
    return list(dict.fromkeys(f"ppl_{each.protocol}" for each in stage.perplexities))


def _metrics(stage: Evaluation, name: str) -> dict[str, Json]:
    """By length, the value and its standard error; what was not measured is absent."""
    by_length: dict[int, Interval | None]
    if name == _LOSS:
        by_length = {length: stage.target_loss(length) for length in stage.lengths}
    elif name in stage.tasks:
        by_length = {length: stage.score(name, length) for length in stage.lengths}
    else:
        by_length = {
            each.length: each.perplexity
            for each in stage.perplexities
            if f"ppl_{each.protocol}" == name and not each.after
        }
    metrics: dict[str, Json] = {}
    for length, interval in by_length.items():
        number = interval_json(interval)
        if interval is None or not isinstance(number, dict):
            continue
        metrics[f"{length},none"] = number["value"]
        error = (interval.high - interval.low) / 2 / Z if interval.bounded else "N/A"
        metrics[f"{length}_stderr,none"] = error
    return metrics


def _counts(stage: Evaluation, name: str) -> dict[str, int]:
    if name not in stage.tasks:
        return {"original": len(stage.documents), "effective": len(stage.documents)}
    count = sum(len(asked.scores) for asked in stage.tasks[name].values())
    return {"original": count, "effective": count}
