"""Intervals and verdicts as JSON, alike in every file that is written."""

from ropepatch.evals.effective_length import EffectiveLength
from ropepatch.evals.evaluation import Json
from ropepatch.evals.statistics import Interval, finite_or_none
from ropepatch.evals.verdict import Verdict


def interval_json(interval: Interval | None) -> Json:
    """Numbers as JSON; None for what was not measured, null for an end that is not known."""
    if interval is None:
        return None
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: finite_or_none(number) for name, number in ends.items()}


def verdict_json(verdict: Verdict) -> dict[str, Json]:
    """Everything that is said of one candidate."""
    return {
        "base": verdict.base,
        "candidate": verdict.candidate,
        "verdict": verdict.word,
        "reasons": list(verdict.reasons),
        "price": interval_json(verdict.price),
        "extension_gain": {str(n): interval_json(gain) for n, gain in verdict.gains.items()},
        "effective_length": _length_json(verdict.relative),
        "effective_length_absolute": _length_json(verdict.absolute),
        "uses_no_context_beyond": None if verdict.unused is None else verdict.unused.length,
    }


def _length_json(length: EffectiveLength) -> Json:
    if length.value is None:
        return {"value": None, "reason": length.reason}
    return {
        "value": length.value,
        "low": length.low,
        "high": length.high,
        "longest_measured": length.longest,
        "threshold": length.threshold,
        "tasks": list(length.tasks),
    }
