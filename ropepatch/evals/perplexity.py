"""Perplexity at several lengths by a named protocol, with intervals over documents."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ropepatch.errors import DataError
from ropepatch.evals.as_json import interval_json
from ropepatch.evals.evaluation import Evaluation, Json
from ropepatch.evals.perplexity_plan import PerplexityPlan
from ropepatch.evals.protocols import Window
from ropepatch.evals.samples import Samples
from ropepatch.evals.scored_tokens import Losses, ScoredTokens, score_tokens
from ropepatch.evals.statistics import Interval, bootstrap_ratio, finite_or_none


@dataclass(frozen=True)
class DocumentScore:
    """What one document adds to a perplexity."""

    total: float  #: losses added up: of windows or of tokens, whichever count the same
    weight: int  #: how many these are
    nats: float  #: losses of its scored tokens added up
    tokens: int  #: scored; several times if several windows score them
    context: int  #: tokens before each of them in its window, added up
    utf8_bytes: int | None  #: that the scored tokens stand for; None: the tokenizer does not tell


@dataclass(frozen=True)
class Perplexity:
    """One model at one length by one protocol."""

    protocol: str
    length: int  #: tokens in a window
    after: int  #: 0, or the length whose tokens are left out: what the tokens from there on add
    digest: str  #: equal for two results that can be compared
    one_pass: bool  #: whether it is read off a pass over more tokens
    base: float  #: perplexity is this to the power of the loss
    names: tuple[str, ...]  #: of the documents
    documents: tuple[DocumentScore | None, ...]  #: None: nothing is scored, as it is too short

    @property
    def loss(self) -> Interval | None:
        """Nats per token, averaged as the protocol does; None where no document is long enough."""
        return _ratio([(one.total, one.weight) for one in self.present])

    @property
    def perplexity(self) -> Interval | None:
        """`base` to the power of the loss and of the ends of its interval."""
        loss = self.loss
        if loss is None:
            return None
        with np.errstate(over="ignore"):  # a broken model's is infinite
            ends = np.power(self.base, [loss.value, loss.low, loss.high])
        return Interval(*ends.tolist())

    @property
    def bits_per_byte(self) -> Interval | None:
        """Σ bits / Σ UTF-8 bytes of the scored tokens, which tokenizers of any kind share."""
        if any(one.utf8_bytes is None for one in self.present):
            return None
        return _ratio([(one.nats / math.log(2), one.utf8_bytes or 0) for one in self.present])

    @property
    def scored_tokens(self) -> int:
        """Losses that were averaged."""
        return sum(one.tokens for one in self.present)

    @property
    def mean_context(self) -> float | None:
        """Tokens that a scored token has before it in its window, on average, start token included."""
        tokens = self.scored_tokens
        return sum(one.context for one in self.present) / tokens if tokens else None

    @property
    def present(self) -> list[DocumentScore]:
        """The documents that are long enough."""
        return [one for one in self.documents if one is not None]

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the documents of which nothing is scored."""
        pairs = zip(self.names, self.documents, strict=True)
        return tuple(name for name, one in pairs if one is None)

    def as_json(self) -> dict[str, Json]:
        """The numbers that people read, None for those that there are not."""
        return {
            "protocol": self.protocol,
            "length": self.length,
            "after": self.after,
            "digest": self.digest,
            "one_pass": self.one_pass,
            "loss": interval_json(self.loss),
            "perplexity": interval_json(self.perplexity),
            "bits_per_byte": interval_json(self.bits_per_byte),
            "scored_tokens": self.scored_tokens,
            "mean_context": self.mean_context,
            "documents": len(self.present),
            "missing": list(self.missing),
            "document_losses": [
                None if one is None else finite_or_none(one.total / one.weight)
                for one in self.documents
            ],
        }


def measure_perplexity(
    model: PreTrainedModel,
    plan: PerplexityPlan,
    *,
    store: Samples | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Perplexity]:
    """Perplexity at every length of a plan, see `perplexities`; errors are those of `score_tokens`."""
    return perplexities(score_tokens(model, plan, store=store, progress=progress))


def perplexities(scored: ScoredTokens) -> list[Perplexity]:
    """One result for every length, then, of nested windows, one for the tokens between two lengths.

    The mean over a whole prefix hides what happens at its end; the tokens added last show it.
    """
    plan = scored.plan
    found = [_perplexity(scored, length, 0) for length in plan.lengths]
    if plan.protocol.nested:
        found += [_perplexity(scored, length, after) for after, length in pairwise(plan.lengths)]
    return found


def perplexity_difference(before: Perplexity, after: Perplexity) -> Interval | None:
    """Loss of `after` minus that of `before`, paired by document; None where both have no number.

    Raises DataError for results of different protocols, lengths, documents or tokenizers.
    """
    if before.digest != after.digest:
        raise DataError(
            f"{_in_words(before)} and {_in_words(after)} cannot be compared; measure both by one "
            "protocol, at the same length, on the same documents, with the same tokenizer"
        )
    pairs = zip(before.present, after.present, strict=True)
    return _ratio([(second.total - first.total, first.weight) for first, second in pairs])


def difference_to_base(base: Evaluation, result: Perplexity) -> Interval | None:
    """`perplexity_difference` to what the base has of the same; None where it has nothing."""
    same = [each for each in base.perplexities if each.digest == result.digest]
    return perplexity_difference(same[0], result) if same else None


def perplexities_json(base: Evaluation, stage: Evaluation) -> list[Json]:
    """Every result of a stage, and its difference to the base; None for the base's own."""
    return [
        {
            **each.as_json(),
            "minus_base": interval_json(None if stage is base else difference_to_base(base, each)),
        }
        for each in stage.perplexities
    ]


def _perplexity(scored: ScoredTokens, length: int, after: int) -> Perplexity:
    plan = scored.plan
    windows = plan.windows[length]
    if after:
        pairs = zip(windows, plan.windows[after], strict=True)
        windows = [_beyond(some, few) for some, few in pairs]
    return Perplexity(
        protocol=plan.protocol.name,
        length=length,
        after=after,
        digest=plan.digest(length, after),
        one_pass=scored.one_pass,
        base=plan.protocol.base,
        names=tuple(text.name for text in plan.texts),
        documents=tuple(
            None if row is None else score_document(plan, some, row)
            for row, some in zip(scored.losses[length], windows, strict=True)
        ),
    )


def _beyond(windows: Sequence[Window], shorter: Sequence[Window]) -> list[Window]:
    """The only window of a document, without the tokens that the shorter one scores."""
    return [
        replace(window, scored=window.scored - few.scored)
        for window, few in zip(windows, shorter, strict=False)
    ]


def score_document(plan: PerplexityPlan, windows: Sequence[Window], row: Losses) -> DocumentScore:
    """The sums of one document, of which `row` ends with the scored tokens of the windows."""
    counts = [window.scored for window in windows]
    losses = row[len(row) - sum(counts) :].astype(np.float64)
    nats = float(losses.sum())
    by_window = plan.protocol.unit == "window"
    ends = np.cumsum(counts)
    means = [part.mean() for part in np.split(losses, ends[:-1])] if by_window else []
    return DocumentScore(
        total=float(np.sum(means)) if by_window else nats,
        weight=len(windows) if by_window else len(losses),
        nats=nats,
        tokens=len(losses),
        context=sum(n * (2 * w.size - n - 1) // 2 for n, w in zip(counts, windows, strict=True)),
        utf8_bytes=None if plan.token_bytes is None else _bytes(plan.token_bytes, windows),
    )


def _bytes(token_bytes: NDArray[np.int64], windows: Sequence[Window]) -> int:
    scored = (token_bytes[window.end - window.scored : window.end] for window in windows)
    return sum(int(some.sum()) for some in scored)


def _ratio(parts: Sequence[tuple[float, int]]) -> Interval | None:
    """Σ sums / Σ weights over documents, None for none."""
    if not parts:
        return None
    sums, weights = zip(*parts, strict=True)
    return bootstrap_ratio(np.array(sums), np.array(weights))


def _in_words(result: Perplexity) -> str:
    after = f" after {result.after}" if result.after else ""
    return (
        f"{result.protocol!r} at {result.length} tokens{after} of {len(result.names)} documents "
        f"({result.digest})"
    )
