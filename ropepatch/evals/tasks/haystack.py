"""The text in which needles hide: consecutive sentences, as tokens, from a place that the seed decides."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ropepatch.corpus import Document
from ropepatch.errors import DataError
from ropepatch.evals.tasks.pieces import Ids, Pieces

#: A sentence with the space before it, or a line with the line breaks before it.
_SENTENCE = re.compile(r"\s*\S.*?(?:(?<=[.!?])(?=\s)|(?=\n)|\Z)")
#: Of the passkey task (landmark attention, arXiv 2305.16300) and of RULER's noise (arXiv 2404.06654).
NOISE: tuple[str, ...] = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)


@dataclass(frozen=True)
class Text:
    """Tokens, and where sentences start among them; a sentence may start where the text ends, too."""

    ids: Ids
    borders: NDArray[np.int64]  #: ascending

    @classmethod
    def of(cls, sentences: Sequence[Ids]) -> "Text":
        """Whole sentences, one after the other."""
        ends = list(accumulate((len(ids) for ids in sentences), initial=0))
        return cls(np.concatenate(sentences), np.array(ends))

    def first(self, length: int) -> "Text":
        """The first `length` tokens."""
        return Text(self.ids[:length], self.borders[self.borders <= length])


def split_sentences(text: str) -> list[str]:
    """Sentences and lines with the space before them; joined they are the text to its last word."""
    return _SENTENCE.findall(text.strip())


def encode_documents(documents: Sequence[Document], pieces: Pieces) -> list[Text]:
    """Every document's sentences."""
    return [Text.of(pieces.many(split_sentences(document.text))) for document in documents]


def window(texts: Sequence[Text], length: int, border: int, rng: np.random.Generator) -> Text:
    """`length` consecutive tokens, with a sentence that starts at index `border` of them.

    Texts follow each other in random order, again from the first if all of them are too short.
    """
    stream = _stream(texts, length, rng)
    behind = len(stream.ids) - (length - border)
    fitting = stream.borders[(stream.borders >= border) & (stream.borders <= behind)]
    start = int(rng.choice(fitting)) - border
    borders = stream.borders - start
    inside = borders[(borders >= 0) & (borders <= length)]
    return Text(stream.ids[start : start + length], inside)


def _stream(texts: Sequence[Text], length: int, rng: np.random.Generator) -> Text:
    """Enough text for any window of `length` tokens: the longest sentence is left to choose in."""
    if not any(len(text.ids) for text in texts):
        raise DataError(
            "the tokenizer gives no tokens for the haystack; use the tokenizer that was saved with the "
            "model, and documents with text"
        )
    slack = max(int(np.diff(text.borders).max()) for text in texts)
    chosen: list[Text] = []
    total = 0
    for text in _endless(texts, rng):
        chosen.append(text)
        total += len(text.ids)
        if total >= length + slack:
            break
    starts = accumulate((len(text.ids) for text in chosen), initial=0)
    borders = [text.borders + start for text, start in zip(chosen, starts, strict=False)]
    return Text(np.concatenate([text.ids for text in chosen]), np.unique(np.concatenate(borders)))


def _endless(texts: Sequence[Text], rng: np.random.Generator) -> Iterator[Text]:
    while True:
        for index in rng.permutation(len(texts)):
            yield texts[index]


def weave(text: Text, needles: Sequence[tuple[int, Ids]]) -> tuple[Ids, list[int]]:
    """The text with needles put in at their indexes, and where each then ends, in the order given."""
    order = sorted(range(len(needles)), key=lambda number: needles[number][0])
    parts: list[Ids] = []
    ends = [0] * len(needles)
    read = written = 0
    for number in order:
        index, needle = needles[number]
        parts += [text.ids[read:index], needle]
        written += index - read + len(needle)
        read, ends[number] = index, written
    return np.concatenate([*parts, text.ids[read:]]), ends


def nearest_border(text: Text, index: int) -> int:
    """Where the sentence starts that is nearest to `index`."""
    return int(text.borders[np.abs(text.borders - index).argmin()]) if len(text.borders) else index
