"""Documents as tokens, and how many bytes of UTF-8 each token stands for."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document
from ropepatch.errors import DataError


@dataclass(frozen=True)
class Text:
    """A document without special tokens."""

    name: str
    input_ids: Tensor  #: (tokens,) int64
    token_bytes: NDArray[np.int64] | None  #: (tokens,); None: the tokenizer does not tell


def read_texts(documents: list[Document], tokenizer: PreTrainedTokenizerBase) -> tuple[Text, ...]:
    """The documents' tokens, without special ones."""
    if not documents:
        raise DataError("there are no documents to read; give at least one")
    # verbose=False: documents are longer than the model on purpose, windows are cut from them.
    batch = tokenizer(
        [document.text for document in documents],
        add_special_tokens=False,
        return_offsets_mapping=tokenizer.is_fast,
        verbose=False,
    )
    offsets = batch["offset_mapping"] if tokenizer.is_fast else [None] * len(documents)
    return tuple(
        Text(
            document.name,
            torch.tensor(ids, dtype=torch.int64),
            None if spans is None else token_bytes(document.text, [start for start, _ in spans]),
        )
        for document, ids, spans in zip(documents, batch["input_ids"], offsets, strict=True)
    )


def token_bytes(text: str, starts: list[int]) -> NDArray[np.int64]:
    """UTF-8 bytes from each token's first character to the next token's, (tokens,); all bytes in sum.

    Of tokens that share a character, the last one has its bytes.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(widths)])  # bytes before each character
    borders = np.array([0, *starts[1:], len(text)] if starts else [0])
    counts: NDArray[np.int64] = np.diff(before[borders])
    return counts
