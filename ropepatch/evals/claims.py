"""The questions that a reader came with, each answered by a number, its interval and one word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ropepatch.errors import DataError
from ropepatch.evals.evaluation import Evaluation, compare
from ropepatch.evals.significance import LEVEL, are_too_few, bounded_change, p_above, p_below
from ropepatch.evals.statistics import Floats, Interval
from ropepatch.evals.wording import tasks_of

Reply = Literal["yes", "no", "unclear", "not measured"]

#: Nats per token that a longer context may cost within the trained length.
PRICE_TOLERANCE = 0.03


@dataclass(frozen=True)
class Check:
    """Something that holds or does not, such as a reloaded model giving the same logits."""

    question: str
    passed: bool | None  #: None: not run
    detail: str


@dataclass(frozen=True)
class Claim:
    """A question and its answer."""

    question: str
    verdict: Reply
    interval: Interval | None
    unit: str  #: "nats per token" or "of prompts"
    detail: str  #: what the number is


def headline(stages: Sequence[Evaluation], checks: Sequence[Check] = ()) -> list[Claim]:
    """The questions answered for the last stage, against the first where it takes two."""
    if not stages:
        raise DataError("a report needs at least one evaluated stage")
    first, last = stages[0], stages[-1]
    length = extended_length(stages)
    claims = [_context_helps(last, length)]
    if len(stages) > 1:
        claims.append(_short_context_kept(first, last))
    claims += [_answers(last, task, length) for task in tasks_of([last])]
    return claims + [_checked(check) for check in checks]


def extended_length(stages: Sequence[Evaluation]) -> int:
    """The length that the last patched stage is made for, or the longest that was measured."""
    made_for = [stage.extended_length for stage in stages if stage.extended_length is not None]
    return made_for[-1] if made_for else stages[-1].lengths[-1]


def multiple(stage: Evaluation, length: int) -> str:
    """A length in units of the trained one: "4×"."""
    return f"{length / stage.trained_length:.3g}×"


def _context_helps(stage: Evaluation, length: int) -> Claim:
    question = f"Does a longer context help, up to {length} tokens?"
    if length == stage.reference_length:
        detail = f"no longer windows than those of {length} tokens were read"
        return Claim(question, "not measured", None, "nats per token", detail)
    gain = stage.context_gain(length)
    short = stage.target_means(stage.reference_length)
    change = bounded_change(short, stage.target_means(length))
    return Claim(
        question=question,
        verdict=_below(gain, change, stage, 0.0),
        interval=gain,
        unit="nats per token",
        detail=(
            f"loss of the same tokens in windows of {length} minus {stage.reference_length} "
            f"tokens, {stage.label}; below 0 is better{_if_too_few(stage)}"
        ),
    )


def _short_context_kept(base: Evaluation, stage: Evaluation) -> Claim:
    price, within = compare(base, stage).within_trained, base.within_trained
    change = bounded_change(base.bin_means(within), stage.bin_means(within))
    return Claim(
        question=f"Is the loss within the trained {stage.trained_length} tokens kept?",
        verdict=_below(price, change, stage, PRICE_TOLERANCE),
        interval=price,
        unit="nats per token",
        detail=(
            f"loss of tokens within {stage.trained_length}, {stage.label} minus {base.label}; "
            f"kept means less than {PRICE_TOLERANCE} more{_if_too_few(stage)}"
        ),
    )


def _answers(stage: Evaluation, task: str, length: int) -> Claim:
    accuracy = stage.score(task, length)
    question = f"Is {task} answered in {length} tokens?"
    if task == "kv":
        question = f"Is a value found again in {length} tokens?"
    if accuracy is None:
        detail = stage.not_asked.get(task, f"no prompts of {length} tokens")
        return Claim(question, "not measured", None, "of prompts", detail)
    chance = stage.tasks[task][length].chance
    within = stage.score(task, stage.reference_length)
    near = f", {within.value:.3f} in {stage.reference_length} tokens" if within else ""
    return Claim(
        question=question,
        verdict=_above_chance(accuracy, chance),
        interval=accuracy,
        unit="of prompts",
        detail=f"right answers, {stage.label}; chance is {chance:.3f}{near}",
    )


def _checked(check: Check) -> Claim:
    verdict: Reply = "not measured"
    if check.passed is not None:
        verdict = "yes" if check.passed else "no"
    return Claim(check.question, verdict, None, "", check.detail)


def _above_chance(score: Interval, chance: float) -> Reply:
    """Whether a score is above what guessing gives; "unclear" where its interval holds both."""
    if score.low > chance:
        return "yes"
    # No interval lies below a chance of 0, but what cannot be guessed and was never right is a no.
    return "no" if score.high < chance or score.value == chance == 0.0 else "unclear"


def _below(interval: Interval, change: Floats, stage: Evaluation, bound: float) -> Reply:
    """Whether the mean of `change` (windows,) lies below `bound`; `interval` is its own.

    Both are asked, as the interval of a few documents is too narrow, see significance.py.
    """
    documents, seed = stage.documents, stage.seed
    if interval.high < bound and p_below(change, documents, bound, seed=seed) <= LEVEL:
        return "yes"
    if interval.low > bound and p_above(change, documents, bound, seed=seed) <= LEVEL:
        return "no"
    return "unclear"


def _if_too_few(stage: Evaluation) -> str:
    """What a reader has to know of an answer that no numbers could have changed."""
    count = len(set(stage.documents.tolist()))
    return f"; {count} documents are too few to tell" if are_too_few(stage.documents) else ""
