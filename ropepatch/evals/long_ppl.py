"""LongPPL (arXiv 2410.23771): the loss of those tokens that need a long context, and of no others.

A judge finds them: the model before it was patched, within the length that it was trained to.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ropepatch.errors import ConfigError
from ropepatch.evals.perplexity import DocumentScore, Perplexity
from ropepatch.evals.perplexity_plan import PerplexityPlan
from ropepatch.evals.protocols import PROTOCOLS, Window, cut_sliding
from ropepatch.evals.samples import Samples
from ropepatch.evals.scored_tokens import Losses, ScoredTokens, score_tokens
from ropepatch.evals.texts import Text

Mask = NDArray[np.bool_]

NAME = "long-ppl"
_GAIN = 2.0  #: nats that the longer context has to save; both numbers are the authors'
_KNOWN = 2.0  #: nats that may be left


@dataclass(frozen=True)
class KeyTokens:
    """Which tokens need a long context, in the eyes of a judge."""

    masks: tuple[Mask | None, ...]  #: by document, of each token but the window's first
    digest: str  #: equal for two judgements that found the same tokens


def find_key_tokens(
    judge: PreTrainedModel,
    plan: PerplexityPlan,
    *,
    trained_length: int,
    short_length: int | None = None,
    step: int | None = None,
    store: Samples | None = None,
    progress: Callable[[float], None] | None = None,
) -> KeyTokens:
    """The tokens that `judge` knows by `trained_length` tokens of context, and not by `short_length`.

    Contexts move on by `step` tokens, and the short one has up to `step` more. By default `short_length`
    is a quarter of the trained one, and `step` a quarter of that, as in the authors' 4096 and 1024.
    Where a text is not longer than the trained length, this is their code; they judge longer texts by
    a model that reads all of them at once. Raises ConfigError for a short context that is not short,
    and for a plan whose windows are no prefixes.
    """
    judged = judge_plan(plan, trained_length=trained_length, short_length=short_length, step=step)
    losses = score_tokens(judge, judged, store=store, progress=progress).losses
    short, full = (losses[length] for length in judged.lengths)
    masks = tuple(
        None if few is None or many is None else _is_key(few, many)
        for few, many in zip(short, full, strict=True)
    )
    found = [None if mask is None else mask.tobytes() for mask in masks]
    digest = hashlib.sha256(repr(found).encode()).hexdigest()
    return KeyTokens(masks, plan.digest(judged.lengths, judged.protocol.stride, digest))


def judge_plan(
    plan: PerplexityPlan,
    *,
    trained_length: int,
    short_length: int | None = None,
    step: int | None = None,
) -> PerplexityPlan:
    """What the judge reads: the texts as far as the plan does, with the start token as one of theirs.

    Errors are those of `find_key_tokens`.
    """
    if not plan.protocol.nested:
        raise ConfigError(
            f"LongPPL reads texts from their beginning, protocol {plan.protocol.name!r} does not; plan "
            "it with protocol 'yarn-truncate'"
        )
    short_length = trained_length // 4 if short_length is None else short_length
    step = max(1, short_length // 4) if step is None else step
    if not 1 <= short_length < short_length + step < trained_length:
        raise ConfigError(
            f"short_length={short_length} and step={step} must be at least 1 and in sum less than "
            f"the {trained_length} tokens that the judge was trained to"
        )
    protocol = replace(PROTOCOLS["yarn-sliding"], name="judge", cut=_cut_sliding, stride=step)
    texts = tuple(
        Text(
            text.name, plan.read(plan.windows[length][n][0]) if length else text.input_ids[:0], None
        )
        for n, (text, length) in enumerate(zip(plan.texts, plan.longest(), strict=True))
    )
    return PerplexityPlan(protocol, (short_length + step, trained_length), texts, None)


def _cut_sliding(tokens: int, length: int, prefixed: bool, stride: int) -> list[Window]:
    """cut_sliding, also of a text that is no longer than a window."""
    return cut_sliding(tokens, min(length, tokens), prefixed, stride) if tokens > 1 else []


def _is_key(short: Losses, full: Losses) -> Mask:
    """Where only the full context tells; where both are the same it saves nothing."""
    key: Mask = (short - full > _GAIN) & (full < _KNOWN)
    return key


def long_perplexities(scored: ScoredTokens, keys: KeyTokens) -> list[Perplexity]:
    """Perplexity of the key tokens at every length of a yarn-truncate plan, pooled over documents."""
    plan = scored.plan
    return [
        Perplexity(
            protocol=NAME,
            length=length,
            after=0,
            digest=plan.digest(NAME, length, keys.digest),
            one_pass=scored.one_pass,
            base=math.e,
            names=tuple(text.name for text in plan.texts),
            documents=tuple(
                None if row is None or mask is None else _score(plan, some[0], row, mask)
                for row, some, mask in zip(
                    scored.losses[length], plan.windows[length], keys.masks, strict=True
                )
            ),
        )
        for length in plan.lengths
    ]


def _score(plan: PerplexityPlan, window: Window, row: Losses, mask: Mask) -> DocumentScore | None:
    """The sums over key tokens, None where there are none."""
    places = np.flatnonzero(mask[: len(row)])
    if len(places) == 0:
        return None
    nats = float(row[places].sum(dtype=np.float64))
    first = window.end - window.scored
    counts = plan.token_bytes
    return DocumentScore(
        total=nats,
        weight=len(places),
        nats=nats,
        tokens=len(places),
        context=int((places + window.size - window.scored).sum()),
        utf8_bytes=None if counts is None else int(counts[first + places].sum()),
    )
