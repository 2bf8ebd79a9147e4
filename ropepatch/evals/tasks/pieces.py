"""Text as tokens, piece by piece: a prompt is put together in tokens and never cut to fit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int64]

#: Pieces are encoded behind this and it is taken off again, as some tokenizers add a space, or drop
#: one, at the start of a text.
_ANCHOR = "a"


class Pieces:
    """Encodes pieces that go on where another text ends, each once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._anchor = self._encode([_ANCHOR])[0]
        self._known: dict[str, Ids] = {}

    def __call__(self, text: str) -> Ids:
        """Tokens of a piece in the middle of a text. Kept, so for pieces that come again."""
        if text not in self._known:
            self._known[text] = self.many([text])[0]
        return self._known[text]

    def many(self, texts: Sequence[str]) -> list[Ids]:
        """Tokens of pieces in the middle of a text, each."""
        start = len(self._anchor)
        found = []
        for text, ids in zip(texts, self._encode([_ANCHOR + text for text in texts]), strict=True):
            # Where the anchor grew together with the text, the text alone has to do.
            whole = ids[:start] == self._anchor
            found.append(np.array(ids[start:] if whole else self._encode([text])[0], np.int64))
        return found

    def opening(self, text: str, *, bos: bool) -> Ids:
        """Tokens of the beginning of a text, BOS first if asked for."""
        start = [self.tokenizer.bos_token_id] if bos else []
        return np.array([*start, *self._encode([text])[0]], np.int64)

    def text(self, ids: Ids) -> str:
        """What the model reads in tokens."""
        return str(self.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # verbose=False: a haystack is longer than the model on purpose.
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids
