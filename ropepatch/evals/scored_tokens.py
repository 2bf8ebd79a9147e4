"""The losses that perplexities are sums of: every scored token's, by length and document.

Where the windows of all lengths are prefixes of one another, one pass over the longest has them all,
unless what the model makes of a token depends on how many follow it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from ropepatch.adapters.pretrained import evaluation_mode
from ropepatch.errors import ConfigError, DataError
from ropepatch.evals.ledger import active_patch
from ropepatch.evals.losses import (
    TOKENS_PER_BATCH,
    Tick,
    check_vocabulary,
    plain_head,
    prefix_is_exact,
    share_ticker,
    token_losses,
    work,
)
from ropepatch.evals.perplexity_plan import PerplexityPlan
from ropepatch.evals.protocols import Window
from ropepatch.evals.samples import Samples

Losses = NDArray[np.float32]
Pass = tuple[int, int]  #: (length, document)
Rows = list[Losses | None]  #: by document: its scored tokens, window after window; None: too short

#: Tokens after which a method that moves frequencies with the length shows.
_TELLING = 512


@dataclass(frozen=True)
class ScoredTokens:
    """What one model makes of a plan."""

    plan: PerplexityPlan
    losses: Mapping[int, Rows]  #: by length
    one_pass: bool  #: whether the losses of all lengths are of the pass over the longest


def score_tokens(
    model: PreTrainedModel,
    plan: PerplexityPlan,
    *,
    store: Samples | None = None,
    progress: Callable[[float], None] | None = None,
) -> ScoredTokens:
    """The losses of a plan; what `store` has is not computed again.

    `progress` is told the share of the work that is done. Raises ConfigError for an encoder–decoder
    model, DataError for tokens that the model does not know.
    """
    _check_causal(model, plan)
    check_vocabulary(model, plan.input_ids)
    with evaluation_mode(model):
        reader = _Reader(
            model, plan, plain_head(model), Samples("model") if store is None else store
        )
        one_pass = plan.protocol.nested and reader.one_pass()
        longest = plan.longest()
        passes: dict[Pass, Pass] = {
            (length, n): (longest[n] if one_pass else length, n)
            for length, each in plan.windows.items()
            for n, windows in enumerate(each)
            if windows
        }
        rows = reader.read(dict.fromkeys(passes.values()), progress or (lambda share: None))
    losses: dict[int, Rows] = {
        length: [
            rows[passes[length, n]][: _scored(windows)] if windows else None
            for n, windows in enumerate(each)
        ]
        for length, each in plan.windows.items()
    }
    return ScoredTokens(plan, losses, one_pass)


def reading_left(plan: PerplexityPlan, samples: Samples) -> float:
    """What a plan still costs if one pass has all lengths wherever windows are prefixes."""
    longest = plan.longest()
    return sum(
        work(1, window.size)
        for length, each in plan.windows.items()
        for number, windows in enumerate(each)
        if not (plan.protocol.nested and length < longest[number])
        and samples.finished(f"{plan.protocol.name}-{length}", number) is None
        for window in windows
    )


def _check_causal(model: PreTrainedModel, plan: PerplexityPlan) -> None:
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"protocol {plan.protocol.name!r} predicts every token of a window from those before it, "
            f"and {type(model).__name__} is an encoder–decoder model, which reads a text's beginning "
            "to predict a few tokens; measure the loss of fixed targets instead, by leaving out the "
            "protocol"
        )


def _scored(windows: Sequence[Window]) -> int:
    return sum(window.scored for window in windows)


@dataclass(frozen=True)
class _Reader:
    """Runs a model over the windows of a plan."""

    model: PreTrainedModel
    plan: PerplexityPlan
    head: nn.Module | None
    store: Samples

    def one_pass(self) -> bool:
        """Whether beginnings of the longest window have the losses that they have alone.

        The shortest length is tried, as frequencies may jump at the trained one, and a beginning that
        is long enough for slow frequencies to turn.
        """
        if active_patch(self.model)[1]:
            return False
        longest, shortest = self.plan.longest(), self.plan.lengths[0]
        length = max(longest)
        if length == shortest:
            return True
        whole_pass = (length, longest.index(length))
        row = self.read([whole_pass], lambda share: None)[whole_pass]
        (window,) = self._windows(whole_pass)
        tokens, losses = self.plan.read(window)[None], torch.from_numpy(row)[None]
        tried = {shortest, min(length // 2, max(_TELLING, shortest))}
        return all(
            prefix_is_exact(self.model, tokens[:, :n], losses, head=self.head) for n in tried
        )

    def read(self, passes: Iterable[Pass], progress: Callable[[float], None]) -> dict[Pass, Losses]:
        """The losses of each pass: from the store, or else computed and given to it."""
        rows = {one: self._finished(one) for one in passes}
        missing = [one for one, row in rows.items() if row is None]
        total = sum(work(1, window.size) for one in missing for window in self._windows(one))
        tick = share_ticker(total, progress)
        for some in self._batches(missing):
            for one, row in self._compute(some, tick).items():
                self.store.keep(self._what(one), one[1], row)
                rows[one] = row
        progress(1.0)
        return {one: row for one, row in rows.items() if row is not None}

    def _windows(self, one: Pass) -> list[Window]:
        length, document = one
        return self.plan.windows[length][document]

    def _what(self, one: Pass) -> str:
        return f"{self.plan.protocol.name}-{one[0]}"

    def _finished(self, one: Pass) -> Losses | None:
        row, expected = self.store.finished(self._what(one), one[1]), _scored(self._windows(one))
        if row is not None and len(row) != expected:
            raise DataError(
                f"{len(row)} losses of {self._what(one)} are kept for document {one[1]}, of which "
                f"{expected} tokens are scored; they are of other documents or settings: use another "
                "directory"
            )
        return row

    def _batches(self, passes: Iterable[Pass]) -> Iterator[list[Pass]]:
        """As many passes at a time as fill a batch, so that finished ones are kept early."""
        batch: list[Pass] = []
        tokens = 0
        for one in passes:
            batch.append(one)
            tokens += sum(window.size for window in self._windows(one))
            if tokens >= TOKENS_PER_BATCH:
                yield batch
                batch, tokens = [], 0
        if batch:
            yield batch

    def _compute(self, passes: Sequence[Pass], tick: Tick) -> dict[Pass, Losses]:
        """A row for each pass; windows of the same shape share batches."""
        alike: dict[tuple[int, int], list[tuple[Pass, Window]]] = {}
        for one in passes:
            for window in self._windows(one):
                alike.setdefault((window.size, window.scored), []).append((one, window))
        parts: dict[tuple[Pass, Window], Losses] = {}
        for (size, scored), places in alike.items():
            at_once = max(1, TOKENS_PER_BATCH // size)
            for start in range(0, len(places), at_once):
                some = places[start : start + at_once]
                parts |= zip(
                    some, self._losses([window for _, window in some], scored), strict=True
                )
                tick(len(some), size)
        return {one: np.concatenate([parts[one, w] for w in self._windows(one)]) for one in passes}

    def _losses(self, windows: Sequence[Window], scored: int) -> Losses:
        """Of windows of one shape, (windows, scored)."""
        tokens = torch.stack([self.plan.read(window) for window in windows])
        with torch.no_grad():  # not inference_mode, see batched_losses
            losses: Losses = token_losses(
                self.model,
                tokens,
                keep=scored,
                head=self.head,
                read_last=self.plan.protocol.reads_last,
            ).numpy()
        return losses
