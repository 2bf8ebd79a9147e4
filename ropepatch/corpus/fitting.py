"""Tokens on which the scores of a checkpoint are measured."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus.files import load_documents
from ropepatch.errors import DataError

_ROWS = 32  #: windows, of documents of their own


def fitting_text(source: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """The middle `length` tokens of training documents, (rows, length).

    `source` is as in a recipe's data.source. Raises DataError where no document is long enough.
    """
    rows: list[Tensor] = []
    for document in load_documents(source, "train"):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= length:
            start = (len(ids) - length) // 2
            rows.append(torch.tensor(ids[start : start + length]))
        if len(rows) == _ROWS:
            break
    if not rows:
        raise DataError(
            f"no document of {source} has {length} tokens, the trained length on which scores are "
            "measured; give longer text"
        )
    return torch.stack(rows)
