"""The losses that perplexities are sums of: every scored token's, by length and document.

Where the windows of all lengths are prefixes of one another, one pass over the longest has them all,
unless what the model makes of a token depends on how many follow it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

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
from ropepatch.evals.perplexity_plan import DocumentWindows, PerplexityPlan
from ropepatch.evals.protocols import Window
from ropepatch.verification import evaluation_mode

Losses = NDArray[np.float32]
Rows = list[Losses | None]  #: by document: its scored tokens, window after window; None: too short


class LossStore(Protocol):
    """Keeps the losses of documents, so that a run that was stopped goes on where it was."""

    def finished(self, what: str, document: int) -> Losses | None:
        """What `keep` was given, None if nothing."""

    def keep(self, what: str, document: int, losses: Losses) -> None:
        """Keep the losses of one document; `what` is fit for the name of a file."""


class NoStore:
    """Keeps nothing."""

    def finished(self, what: str, document: int) -> Losses | None:
        """Nothing."""
        return None

    def keep(self, what: str, document: int, losses: Losses) -> None:
        """Forget them."""


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
    store: LossStore | None = None,
    progress: Callable[[float], None] | None = None,
) -> ScoredTokens:
    """The losses of a plan; what `store` has is not computed again.

    `progress` is told the share of the work that is done. Raises ConfigError for an encoder–decoder
    model, DataError for tokens that the model does not know.
    """
    _check_causal(model, plan)
    check_vocabulary(model, plan.input_ids)
    windows = {length: plan.windows(length) for length in plan.lengths}
    with evaluation_mode(model):
        head = plain_head(model)
        one_pass = plan.protocol.nested and _one_pass(model, plan, head)
        if one_pass:
            passes = {plan.protocol.name: plan.longest()}
        else:
            passes = {f"{plan.protocol.name}-{n}": some for n, some in windows.items()}
        rows = _run(model, plan, passes, head, store or NoStore(), progress or (lambda share: None))
    if one_pass:
        rows = [_beginnings(rows[0], some) for some in windows.values()]
    return ScoredTokens(plan, dict(zip(windows, rows, strict=True)), one_pass)


def _check_causal(model: PreTrainedModel, plan: PerplexityPlan) -> None:
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"protocol {plan.protocol.name!r} predicts every token of a window from those before it, "
            f"and {type(model).__name__} is an encoder–decoder model, which reads a text's beginning "
            "to predict a few tokens; measure the loss of fixed targets instead, by leaving out the "
            "protocol"
        )


def _beginnings(rows: Rows, windows: DocumentWindows) -> Rows:
    """What shorter windows score of the rows of longer ones that begin with them."""
    return [
        row[: some[0].scored] if row is not None and some else None
        for row, some in zip(rows, windows, strict=True)
    ]


def _one_pass(model: PreTrainedModel, plan: PerplexityPlan, head: nn.Module | None) -> bool:
    """Whether prefixes of the longest window have the losses that they have alone, by trying two.

    Half the window tells frequencies that move with the length; the shortest length, those that jump
    at the trained one.
    """
    if active_patch(model)[1]:
        return False
    longest = max((some[0] for some in plan.longest() if some), key=lambda window: window.size)
    tokens = plan.read(longest)[None]
    tried = {max(longest.size // 2, 2), plan.lengths[0]} - {longest.size}
    return all(prefix_is_exact(model, tokens, length, head=head) for length in tried)


def _run(
    model: PreTrainedModel,
    plan: PerplexityPlan,
    passes: Mapping[str, DocumentWindows],
    head: nn.Module | None,
    store: LossStore,
    progress: Callable[[float], None],
) -> list[Rows]:
    """The rows of each pass: from the store, or else computed and given to it."""
    found = [_finished(store, what, windows) for what, windows in passes.items()]
    missing = [
        {n: some for n, some in enumerate(windows) if some and rows[n] is None}
        for windows, rows in zip(passes.values(), found, strict=True)
    ]
    total = sum(
        work(1, window.size) for each in missing for some in each.values() for window in some
    )
    tick = share_ticker(total, progress)
    for what, rows, left in zip(passes, found, missing, strict=True):
        for documents in _batches(left):
            for number, row in _document_losses(model, plan, documents, head, tick).items():
                store.keep(what, number, row)
                rows[number] = row
    progress(1.0)
    return found


def _finished(store: LossStore, what: str, windows: DocumentWindows) -> Rows:
    rows = [store.finished(what, n) if some else None for n, some in enumerate(windows)]
    for number, (row, some) in enumerate(zip(rows, windows, strict=True)):
        expected = sum(window.scored for window in some)
        if row is not None and len(row) != expected:
            raise DataError(
                f"{len(row)} losses are kept of document {number} of {what}, where {expected} tokens "
                "are scored; they are of other documents or settings: use another directory"
            )
    return rows


def _batches(documents: Mapping[int, list[Window]]) -> Iterator[dict[int, list[Window]]]:
    """Documents one after another, as many at a time as fill a batch: finished ones are kept early."""
    batch: dict[int, list[Window]] = {}
    tokens = 0
    for number, windows in documents.items():
        batch[number] = windows
        tokens += sum(window.size for window in windows)
        if tokens >= TOKENS_PER_BATCH:
            yield batch
            batch, tokens = {}, 0
    if batch:
        yield batch


def _document_losses(
    model: PreTrainedModel,
    plan: PerplexityPlan,
    documents: Mapping[int, list[Window]],
    head: nn.Module | None,
    tick: Tick,
) -> dict[int, Losses]:
    """A row for each document; windows of the same shape share batches."""
    shapes: dict[tuple[int, int], list[tuple[int, Window]]] = {}
    for number, windows in documents.items():
        for window in windows:
            shapes.setdefault((window.size, window.scored), []).append((number, window))
    parts: dict[tuple[int, Window], Losses] = {}
    for (size, scored), alike in shapes.items():
        at_once = max(1, TOKENS_PER_BATCH // size)
        for start in range(0, len(alike), at_once):
            some = alike[start : start + at_once]
            tokens = torch.stack([plan.read(window) for _, window in some])
            with torch.no_grad():  # not inference_mode, see batched_losses
                losses = token_losses(
                    model, tokens, keep=scored, head=head, read_last=plan.protocol.reads_last
                )
            parts |= zip(some, losses.numpy(), strict=True)
            tick(len(some), size)
    return {n: np.concatenate([parts[n, w] for w in windows]) for n, windows in documents.items()}
