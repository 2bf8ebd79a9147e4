"""Tokens on which the scores of a checkpoint are measured."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus.documents import Document
from ropepatch.errors import DataError

_ROWS = 32  #: windows, of documents of their own


def fitting_text(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, length: int
) -> Tensor:
    """The middle `length` tokens of the first documents that have them, (rows, length).

    Raises DataError where no document is long enough.
    """
    rows: list[Tensor] = []
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= length:
            start = (len(ids) - length) // 2
            rows.append(torch.tensor(ids[start : start + length]))
        if len(rows) == _ROWS:
            break
    if not rows:
        raise DataError(
            f"no document has {length} tokens, the trained length on which scores are measured for the "
            "fit; give longer text, or leave the fit out"
        )
    return torch.stack(rows)
