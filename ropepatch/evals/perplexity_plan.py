"""What is read for perplexity: the documents' tokens and the windows that a protocol cuts of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document
from ropepatch.errors import DataError
from ropepatch.evals.protocols import (
    PerplexityProtocol,
    Window,
    check_lengths,
    perplexity_protocol,
)
from ropepatch.evals.texts import Text, read_texts

#: By document; positions count from the first token of the first document.
DocumentWindows = list[list[Window]]


@dataclass(frozen=True)
class PerplexityPlan:
    """What is read and scored, the same for all models that are to be compared."""

    protocol: PerplexityProtocol
    lengths: tuple[int, ...]  #: tokens in a window, ascending
    texts: tuple[Text, ...]
    prefix: int | None  #: the start token

    @cached_property
    def input_ids(self) -> Tensor:
        """All documents' tokens in a row."""
        return torch.cat([text.input_ids for text in self.texts])

    @cached_property
    def token_bytes(self) -> NDArray[np.int64] | None:
        """UTF-8 bytes of each of these tokens; None where the tokenizer does not tell them."""
        counts = [text.token_bytes for text in self.texts if text.token_bytes is not None]
        return np.concatenate(counts) if len(counts) == len(self.texts) else None

    @cached_property
    def borders(self) -> NDArray[np.int64]:
        """Where each document starts, and where the last one ends."""
        return np.cumsum([0, *(len(text.input_ids) for text in self.texts)])

    @cached_property
    def windows(self) -> dict[int, DocumentWindows]:
        """By length: each document's, none if it is too short; of joined ones, those that start in it."""
        by_length = self._joined_windows if self.protocol.joined else self._own_windows
        return {length: by_length(length) for length in self.lengths}

    def longest(self) -> list[int]:
        """The longest length that each document holds, 0 if none."""
        return [
            max((length for length, each in self.windows.items() if each[number]), default=0)
            for number in range(len(self.texts))
        ]

    def _own_windows(self, length: int) -> DocumentWindows:
        return [
            [
                replace(window, start=first + window.start, end=first + window.end)
                for window in self._cut(end - first, length)
            ]
            for first, end in pairwise(self.borders.tolist())
        ]

    def _joined_windows(self, length: int) -> DocumentWindows:
        found: DocumentWindows = [[] for _ in self.texts]
        for window in self._cut(len(self.input_ids), length):
            number = int(np.searchsorted(self.borders, window.start, side="right")) - 1
            found[number].append(window)
        return found

    def _cut(self, tokens: int, length: int) -> list[Window]:
        stride = self.protocol.stride or length
        return self.protocol.cut(tokens, length, self.prefix is not None, stride)

    def read(self, window: Window) -> Tensor:
        """The tokens of a window, (size,)."""
        ids = self.input_ids[window.start : window.end]
        return torch.cat([torch.tensor([self.prefix]), ids]) if window.prefixed else ids

    def digest(self, *what: object) -> str:
        """Equal for results that were read and scored alike, as far as `what` tells them apart."""
        settings = (self.protocol.name, self.protocol.stride, self.prefix, self._content, what)
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    @cached_property
    def _content(self) -> str:
        content = self.input_ids.numpy().tobytes() + self.borders.tobytes()
        return hashlib.sha256(content).hexdigest()


def plan_perplexity(
    tokenizer: PreTrainedTokenizerBase,
    documents: list[Document],
    *,
    protocol: str = "last-s",
    lengths: Sequence[int],
    stride: int | None = None,
) -> PerplexityPlan:
    """What to read of the documents. Raises ConfigError and DataError before any model has to run."""
    chosen = perplexity_protocol(protocol, stride)
    check_lengths(chosen, lengths)
    prefix = start_token(tokenizer, chosen)
    plan = PerplexityPlan(chosen, tuple(lengths), read_texts(documents, tokenizer), prefix)
    if not any(plan.windows[lengths[0]]):
        raise DataError(
            f"there is no window of {lengths[0]} tokens by protocol {protocol!r}: {_sizes(plan)}; ask "
            "for shorter lengths or add documents"
        )
    return plan


def _sizes(plan: PerplexityPlan) -> str:
    if plan.protocol.joined:
        return f"the {len(plan.texts)} documents have {len(plan.input_ids)} tokens together"
    longest = max(plan.texts, key=lambda text: len(text.input_ids))
    return (
        f"the longest of {len(plan.texts)} documents, {longest.name!r}, has "
        f"{len(longest.input_ids)} tokens"
    )


def start_token(tokenizer: PreTrainedTokenizerBase, protocol: PerplexityProtocol) -> int | None:
    """The token that the protocol starts texts with, None where it does without."""
    found = tokenizer.bos_token_id if protocol.prefix is not None else None
    if found is None and protocol.prefix == "bos or eos":
        found = tokenizer.eos_token_id
        if found is None:
            raise DataError(
                f"protocol {protocol.name!r} predicts the first token of a text from BOS or EOS, and "
                "the tokenizer has neither; use protocol 'last-s'"
            )
    return None if found is None else int(found)
