"""Where the plain text of training sequences comes from."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ropepatch.corpus.retrieval import random_window
from ropepatch.errors import DataError
from ropepatch.training.skipped_positions import IntArray, Skips

BoolArray = NDArray[np.bool_]
Columns = Mapping[str, NDArray[np.generic]]


class Text(NamedTuple):
    """One training sequence of plain text."""

    tokens: IntArray  #: (length,), free to be written to
    scored: BoolArray  #: (length,), tokens that what stands before them can predict
    columns: Columns = MappingProxyType({})  #: what else the model is given, such as position_ids
    starts: tuple[int, ...] = (0,)  #: where a document begins, or a piece of one


class TextSource(Protocol):
    """Draws sequences of text; all randomness comes from the generator."""

    length: int  #: tokens in a sequence
    documents: Sequence[Tensor]  #: the tokens of each

    def draw(self, rng: np.random.Generator) -> Text:
        """One sequence."""

    def document(self, rng: np.random.Generator) -> Tensor:
        """The tokens of one document, at least `length`, to put retrieval tasks into."""

    def columns(self, rng: np.random.Generator) -> Columns:
        """What else the model is given with a sequence that is no plain text."""


def token_counts(documents: Sequence[Tensor], needed: int) -> list[int]:
    """Of each document. Raises DataError for a text that has not `needed` tokens in all."""
    counts = [len(document) for document in documents]
    if sum(counts) < needed:
        raise DataError(
            f"the text has {sum(counts)} tokens in all, and a sequence needs {needed}; give more text "
            "or a shorter length"
        )
    return counts


class Windows:
    """Windows of single documents, each as likely as any other."""

    def __init__(
        self, documents: Sequence[Tensor], length: int, *, window: int | None = None
    ) -> None:
        """Documents below `window` tokens (default: `length`) are left out; DataError if all are."""
        self.documents = documents
        self.length = length
        self.window = window or length
        counts = token_counts(documents, self.window)
        windows = [max(0, count - self.window + 1) for count in counts]
        if not any(windows):
            raise DataError(
                f"no document fills a sequence of {self.window} tokens, the longest of "
                f"{len(counts)} has {max(counts)}; use a shorter length or longer documents"
                + (", or join several with data.packing" if self.window == length else "")
            )
        self._until = np.cumsum(windows)

    def draw(self, rng: np.random.Generator) -> Text:
        tokens = random_window(self.document(rng), self.length, rng).copy()
        return Text(tokens, np.ones(self.length, dtype=np.bool_))

    def document(self, rng: np.random.Generator) -> Tensor:
        window = rng.integers(self._until[-1])
        return self.documents[int(np.searchsorted(self._until, window, side="right"))]

    def columns(self, rng: np.random.Generator) -> Columns:
        return {}


class SkippingWindows(Windows):
    """Windows with the positions of longer ones.

    PoSE's text skips with its positions (arXiv 2309.10400, §3, v = u): the pieces of a sequence are
    read from one window of the target length. RandPos reads one piece, as other tasks do.
    """

    def __init__(self, documents: Sequence[Tensor], length: int, skips: Skips) -> None:
        super().__init__(documents, length, window=skips.target if skips.skip_text else length)
        self.skips = skips

    def draw(self, rng: np.random.Generator) -> Text:
        window = random_window(self.document(rng), self.window, rng)
        positions = self.skips.positions(self.length, rng)
        tokens = window[positions] if self.skips.skip_text else window.copy()
        # What stands behind a gap does not follow from what stands before it.
        scored = np.diff(positions, prepend=positions[0] - 1) == 1
        return Text(
            tokens, scored if self.skips.skip_text else np.ones_like(scored), _columns(positions)
        )

    def columns(self, rng: np.random.Generator) -> Columns:
        return _columns(self.skips.positions(self.length, rng))


def _columns(positions: IntArray) -> Columns:
    """With a mask of ones: without one transformers cuts attention at every jump of positions."""
    return {"position_ids": positions, "attention_mask": np.ones_like(positions)}
