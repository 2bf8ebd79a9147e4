"""Sequences that are packed full with documents of any length, which do not see each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ropepatch.corpus.retrieval import random_window
from ropepatch.errors import ConfigError, DataError
from ropepatch.training.skipped_positions import IntArray
from ropepatch.training.text import Columns, Text, Windows, token_counts

Borders = Literal["positions", "mask"]
_LONGEST_MASK = 16384  #: tokens; a mask of one byte for each pair of them takes 256 MiB


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How documents are joined.

    `positions` start at 0 in every document, and there is no mask: transformers makes one of the
    jumps. `mask` is a matrix for each sequence, and positions go on, which relative encodings such
    as ALiBi cannot tell.
    """

    borders: Borders = "positions"
    #: Share of the sequences, and so of the tokens, that are one window of a document that fills it;
    #: all others are packed of shorter ones. ProLong's best is 0.6 (arXiv 2410.02660, §3). None: as
    #: the documents have it, every token as likely as any other.
    long_documents: float | None = None

    def __post_init__(self) -> None:
        share = self.long_documents
        if share is not None and not 0.0 <= share <= 1.0:
            raise ConfigError(f"long_documents={share} must be a share between 0 and 1")

    def check(self, length: int) -> None:
        """Raise ConfigError where sequences of `length` tokens cannot have such borders."""
        if self.borders == "mask" and length > _LONGEST_MASK:
            raise ConfigError(
                f"packing.borders: mask holds length × length values ({length**2 / 2**30:.1f} GiB a "
                f"sequence at {length} tokens), and is for up to {_LONGEST_MASK}; use borders: positions"
            )

    def columns(self, starts: Sequence[int], length: int) -> Columns:
        """What tells a model where documents begin."""
        sizes = np.diff([*starts, length])
        if self.borders == "positions":
            return {"position_ids": np.arange(length) - np.repeat(starts, sizes)}
        document = np.repeat(np.arange(len(starts)), sizes)
        # (1 for all heads, query, key)
        return {"attention_mask": np.tril(document[:, None] == document)[None]}


class Packs:
    """Documents one after the other, the last one cut to fit.

    A document longer than the room that is left is cut at a random place; no token is scored that
    would have to be predicted from another document.
    """

    def __init__(self, documents: Sequence[Tensor], length: int, packing: Packing) -> None:
        """DataError for too little text, or where `long_documents` asks for what there is none of."""
        self.documents = documents
        self.length = length
        self.packing = packing
        sizes = np.array(token_counts(documents, length))
        self.longest = int(sizes.max())
        self.long = Windows(documents, length) if self.longest >= length else None
        # A long document is drawn more often, as only `length` tokens of it are taken at a time.
        weights = np.maximum(sizes / length, 1.0)
        if packing.long_documents is not None:
            weights[sizes >= length] = 0.0
            self._check_share(packing.long_documents, bool(weights.any()))
        self._until = np.cumsum(weights)

    def draw(self, rng: np.random.Generator) -> Text:
        share = self.packing.long_documents
        if share is not None and rng.random() < share:
            text = self._long_documents().draw(rng)
            return text._replace(columns=self.columns(rng))
        pieces = self._pieces(rng)
        starts = (0, *np.cumsum([len(piece) for piece in pieces])[:-1].tolist())
        scored = np.ones(self.length, dtype=np.bool_)
        scored[list(starts)] = False
        columns = self.packing.columns(starts, self.length)
        return Text(np.concatenate(pieces), scored, columns, starts)

    def document(self, rng: np.random.Generator) -> Tensor:
        return self._long_documents().document(rng)

    def columns(self, rng: np.random.Generator) -> Columns:
        return self.packing.columns((0,), self.length)

    def _pieces(self, rng: np.random.Generator) -> list[IntArray]:
        pieces, room = [], self.length
        while room:
            drawn = np.searchsorted(self._until, rng.random() * self._until[-1], side="right")
            document = self.documents[int(drawn)]
            pieces.append(random_window(document, min(len(document), room), rng))
            room -= len(pieces[-1])
        return pieces

    def _long_documents(self) -> Windows:
        if self.long is None:
            raise DataError(
                f"no document fills a sequence of {self.length} tokens, the longest of "
                f"{len(self.documents)} has {self.longest}; mixture.retrieval and "
                "packing.long_documents need such documents: set them to 0, or use a shorter length"
            )
        return self.long

    def _check_share(self, share: float, any_short: bool) -> None:
        if share > 0:
            self._long_documents()
        if share < 1 and not any_short:
            raise DataError(
                f"every document fills a sequence of {self.length} tokens, so packing.long_documents "
                f"cannot be {share}; leave it out, or add shorter documents"
            )
