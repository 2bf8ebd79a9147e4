"""Whether a candidate is better or worse than its base, in one word and its reasons.

Two families of one-sided tests, harms and gains, each held against 2.5 % after Holm's correction: two
equal models are told apart in at most 1 of 20 comparisons. The unit is the document for losses and the
prompt for scores.

No gain counts that the loss contradicts: neither where the candidate's loss is surely above what the
user had, nor anywhere if that is so at the length that its patch is made for. A model may find values
again in text that it cannot read any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ropepatch.evals.claims import PRICE_TOLERANCE
from ropepatch.evals.context_use import UnusedContext, unused_context
from ropepatch.evals.effective_length import EffectiveLength, absolute_length, relative_length
from ropepatch.evals.evaluation import Comparison, Evaluation, compare
from ropepatch.evals.significance import (
    LEVEL,
    are_too_few,
    bounded_change,
    holm,
    p_above,
    p_below,
    p_higher,
)
from ropepatch.evals.statistics import Interval, paired_difference
from ropepatch.evals.wording import show_interval, task_name

Word = Literal["improved", "no evidence", "regressed"]


@dataclass(frozen=True)
class Finding:
    """Something that was tested for."""

    about: str  #: "loss" or the name of a task
    length: int
    difference: Interval  #: candidate minus base
    p: float  #: corrected for all that was tested for
    text: str

    @property
    def shown(self) -> bool:
        """Whether it is more than chance makes of equal models."""
        return self.p <= LEVEL


@dataclass(frozen=True)
class Verdict:
    """One candidate against its base."""

    base: str
    candidate: str
    word: Word
    reasons: tuple[str, ...]  #: gains beside costs, in words, with intervals
    price: Interval  #: all tokens within the trained length, candidate minus base, nats per token
    gains: Mapping[int, Interval]  #: beyond it, against the base's loss at its trained length
    differences: Comparison  #: against the base at the same length
    relative: EffectiveLength
    absolute: EffectiveLength
    unused: UnusedContext | None


def judge(base: Evaluation, candidate: Evaluation) -> Verdict:
    """The verdict. Raises DataError unless both evaluations read the same tokens."""
    differences = compare(base, candidate)
    harms, gains = _harms(base, candidate, differences), _gains(base, candidate, differences)
    harmed, gained = ([each for each in found if each.shown] for found in (harms, gains))
    broken = [n for n in candidate.broken_lengths if n not in base.broken_lengths]
    refuted = _refuted_lengths(base, candidate)
    counted = [each for each in gained if each.length not in refuted]
    unused = unused_context(candidate)
    return Verdict(
        base=base.label,
        candidate=candidate.label,
        word="regressed" if harmed or broken else "improved" if counted else "no evidence",
        reasons=(
            *(
                [
                    *([f"worse: {not_finite(broken)}"] if broken else []),
                    *_reasons("worse", harmed),
                    *_reasons("better", counted),
                    *_reasons(
                        "not counted, as the loss is too high",
                        [each for each in gained if each not in counted],
                    ),
                ]
                or _without_evidence(base, harms, gains)
            ),
            *(_costs(base, candidate, differences) if gained and not harmed else ()),
            *(() if unused is None else (str(unused),)),
        ),
        price=differences.within_trained,
        gains={n: extension_gain(base, candidate, n) for n in base.lengths_beyond},
        differences=differences,
        relative=relative_length(candidate),
        absolute=absolute_length(candidate),
        unused=unused,
    )


def not_finite(lengths: Sequence[int]) -> str:
    """What is said of a model that gives no numbers."""
    where = ", ".join(map(str, lengths))
    return (
        f"losses in {where} tokens are not finite; look for NaN in its weights, or other positions"
    )


def extension_gain(base: Evaluation, candidate: Evaluation, length: int) -> Interval:
    """The candidate's loss at `length` minus what the user had: the base's at its trained length."""
    had = base.target_means(base.reference_length)
    return paired_difference(had, candidate.target_means(length), base.documents, seed=base.seed)


def _harms(base: Evaluation, candidate: Evaluation, differences: Comparison) -> list[Finding]:
    """Everything that may have become worse, with how likely equal models would look so."""
    within = base.within_trained
    price = bounded_change(base.bin_means(within), candidate.bin_means(within))
    tested = [
        _loss_finding(
            base.trained_length,
            differences.within_trained,
            p_above(price, base.documents, PRICE_TOLERANCE, seed=base.seed),
            _price_text(base),
        )
    ]
    for length, interval in differences.target_losses.items():
        change = bounded_change(base.target_means(length), candidate.target_means(length))
        p = p_above(change, base.documents, PRICE_TOLERANCE, seed=base.seed)
        text = f"loss of the same tokens in {length}"
        tested.append(_loss_finding(length, interval, p, text))
    for task, by_length in differences.tasks.items():
        for length, interval in by_length.items():
            before, after = base.tasks[task][length], candidate.tasks[task][length]
            p = p_higher(after.scores, before.scores, seed=base.seed)
            tested.append(_task_finding(task, length, interval, p))
    return _corrected(tested)


def _gains(base: Evaluation, candidate: Evaluation, differences: Comparison) -> list[Finding]:
    """Everything that may have become better, at lengths that the candidate is made for."""
    had = base.target_means(base.reference_length)
    tested = []
    for length in candidate.lengths_gained:
        now = candidate.target_means(length)
        # A base that reads on by itself was no worse off: both have to be beaten.
        p = max(
            p_below(bounded_change(before, now), base.documents, seed=base.seed)
            for before in (had, base.target_means(length))
        )
        interval = extension_gain(base, candidate, length)
        tested.append(_loss_finding(length, interval, p, _gain_text(base, length)))
        for task, by_length in differences.tasks.items():
            if length not in by_length:
                continue
            before, after = base.tasks[task][length], candidate.tasks[task][length]
            score = candidate.score(task, length)
            above = score is not None and score.low > after.chance
            p = p_higher(before.scores, after.scores, seed=base.seed) if above else 1.0
            tested.append(_task_finding(task, length, by_length[length], p))
    return _corrected(tested)


def _refuted_lengths(base: Evaluation, candidate: Evaluation) -> set[int]:
    """Where no gain counts; all lengths if the loss is too high at the one that the patch is for."""
    beyond = base.lengths_beyond
    refuted = {n for n in beyond if _is_too_high(extension_gain(base, candidate, n))}
    return set(beyond) if candidate.extended_length in refuted else refuted


def _is_too_high(gain: Interval) -> bool:
    """Whether a loss is surely more than kept, or, of one document, whether it is; or is no number."""
    return not (gain.low if gain.bounded else gain.value) <= PRICE_TOLERANCE


def _gain_text(base: Evaluation, length: int) -> str:
    return f"loss of the same tokens in {length} against the base's in {base.reference_length}"


def _price_text(base: Evaluation) -> str:
    return f"loss within the trained {base.trained_length} tokens"


def _loss_finding(length: int, interval: Interval, p: float, text: str) -> Finding:
    return Finding("loss", length, interval, p, f"{text}: {_shown(interval)} nats")


def _task_finding(task: str, length: int, interval: Interval, p: float) -> Finding:
    text = f"{task_name(task)} in {length} tokens: {_shown(interval)}"
    return Finding(task, length, interval, p, text)


def _shown(interval: Interval) -> str:
    return show_interval(interval, signed=True)


def _corrected(tested: list[Finding]) -> list[Finding]:
    corrected = holm({number: finding.p for number, finding in enumerate(tested)})
    return [
        Finding(each.about, each.length, each.difference, corrected[number], each.text)
        for number, each in enumerate(tested)
    ]


def _reasons(change: str, findings: list[Finding]) -> list[str]:
    """What is surest of each kind, and where else it was found."""
    reasons = []
    for about in dict.fromkeys(finding.about for finding in findings):
        same = [each for each in findings if each.about == about]
        same.sort(key=lambda each: (each.p, -abs(each.difference.value)))
        others = sorted({each.length for each in same} - {same[0].length})
        also = f"; also in {', '.join(map(str, others))}" if others else ""
        reasons.append(f"{change}: {same[0].text} (p = {same[0].p:.2g}){also}")
    return reasons


def _costs(base: Evaluation, candidate: Evaluation, differences: Comparison) -> list[str]:
    """What stands beside a gain: losses above those that the user had."""
    costs = {_price_text(base): differences.within_trained}
    for length in candidate.lengths_gained:
        costs[_gain_text(base, length)] = extension_gain(base, candidate, length)
    return [f"cost: {text}: {_shown(each)} nats" for text, each in costs.items() if each.low > 0]


def _without_evidence(base: Evaluation, harms: list[Finding], gains: list[Finding]) -> list[str]:
    """How near it was, and whether so few documents could have shown anything."""
    reasons = ["nothing is worse or better than equal models would be by chance"]
    tests = max(len(harms), len(gains))
    if are_too_few(base.documents, tests):
        documents = len(set(base.documents.tolist()))
        reasons.append(
            f"{documents} documents cannot show a difference of losses at {tests} places; add documents"
        )
    for found, best in ((gains, "best"), (harms, "worst")):
        losses = [each for each in found if each.about == "loss"]
        if losses:
            nearest = min(losses, key=lambda each: each.p)
            reasons.append(f"{best}: {nearest.text} (p = {nearest.p:.2g})")
    return reasons
