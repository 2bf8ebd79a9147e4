"""Numbers as the terminal and the page show them: aligned, signed where they are differences."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ropepatch.evals.effective_length import EffectiveLength
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.statistics import Interval

if TYPE_CHECKING:
    from ropepatch.evals.perplexity import Perplexity

MISSING = "–"


def show_number(value: float, *, digits: int = 3, signed: bool = False) -> str:
    """A number with a true minus sign, or "not finite" for what a broken model gives."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "−")


def show_range(interval: Interval, *, digits: int = 3, signed: bool = False) -> str:
    """The two ends of an interval, or what stands for an interval that one document cannot give."""
    if not interval.bounded:
        return "[no interval]"
    ends = [show_number(end, digits=digits, signed=signed) for end in (interval.low, interval.high)]
    return f"[{', '.join(ends)}]"


def show_interval(interval: Interval | None, *, digits: int = 3, signed: bool = False) -> str:
    """A value and its interval; a dash where nothing was measured.

    No space inside of the brackets: a narrow column then breaks in front of them.
    """
    if interval is None:
        return MISSING
    value = show_number(interval.value, digits=digits, signed=signed)
    return f"{value} {show_range(interval, digits=digits, signed=signed).replace(', ', ',')}"


def show_length(length: EffectiveLength) -> tuple[str, ...]:
    """`512` and `[256,512]`; `≥ 2048` where the longest passes; a dash where it is not measurable."""
    if length.value is None:
        return (MISSING,)
    least = "≥ " if length.value == length.longest else ""
    value = f"{least}{length.value}" if length.value else "none"
    return value, f"[{length.low},{length.high}]"


def show_tokens(result: "Perplexity") -> str:
    """A window's tokens, or the positions that it adds to the next shorter one."""
    return f"{result.after}–{result.length - 1}" if result.after else str(result.length)


def show_documents(result: "Perplexity") -> str:
    """How many documents are long enough."""
    return f"{len(result.present)} of {len(result.documents)}"


def show_context(result: "Perplexity") -> str:
    """Tokens before a scored one, on average."""
    return MISSING if result.mean_context is None else f"{result.mean_context:.0f}"


def tasks_of(stages: Sequence[Evaluation]) -> list[str]:
    """Every task that was asked of a stage; where none was, those that could not be, to say so."""
    asked = dict.fromkeys(task for stage in stages for task in stage.tasks)
    return list(asked or dict.fromkeys(task for stage in stages for task in stage.not_asked))


def task_name(task: str) -> str:
    """What a reader calls a task."""
    return "retrieval" if task == "kv" else task


def task_title(task: str, stages: Sequence[Evaluation]) -> str:
    """The heading over its scores, with what guessing gives."""
    chances = [chance for stage in stages if (chance := stage.chance(task)) is not None]
    null = f"chance {chances[0]:.3f}" if chances else "not measured"
    name = "Retrieval" if task == "kv" else task
    return f"{name}, share of right answers ({null})"
