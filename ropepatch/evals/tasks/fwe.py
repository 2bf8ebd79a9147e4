"""RULER's frequent words (arXiv 2404.06654): coded words whose counts follow Zipf's law with α = 2.

The most frequent of all is no word but dots, which the question says to ignore.
"""

import math
import string
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ropepatch.evals.tasks.assembly import Question, finish
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, register
from ropepatch.evals.tasks.source import Source
from ropepatch.evals.tasks.words import equally_long, letters

ASKED = 3
CHOICES = 8
_LETTERS = 6
_ALPHA = 2.0
_ZETA = math.pi**2 / 6  #: of α = 2
_TOKENS_PER_WORD = 50  #: of the vocabulary, not of the text
#: From here on the fourth rank is always more frequent than the fifth: 73 (1/16 − 1/25) / ζ > 1.
_LEAST_WORDS = 73
_HEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words."
)
_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
    "frequently appeared words in the above coded text?"
)
_ENDING = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)


@dataclass(frozen=True)
class FrequentWords(Task):
    """The three most frequent coded words."""

    name: str = "fwe"
    answer_tokens: int = 50

    def prompt(self, source: Source, place: Place) -> Prompt:
        """As many words as fit; what one more would not fill is left to the answer."""
        rng = self.generator(place)
        pieces = source.pieces
        size = max(place.length // _TOKENS_PER_WORD, ASKED + CHOICES)
        coded = equally_long(rng, letters(_LETTERS, string.ascii_lowercase), size - 1, pieces)
        vocabulary = ["...", *coded]
        right = vocabulary[1 : 1 + ASKED]
        answer, tail, *words = pieces.many(
            [" " + " ".join(right), _QUESTION + _ENDING, *(f" {word}" for word in vocabulary)]
        )
        head = source.opening(_HEAD)
        used = len(head) + len(tail) + self.budget(place.length, answer)
        sizes = np.array([len(ids) for ids in words])
        least = int(counts(_LEAST_WORDS, size) @ sizes)
        room = self.room(place.length, used, least=least)
        often = counts(_most(room, sizes), size)
        order = rng.permutation(np.repeat(np.arange(size), often))
        wrong = [words[rank] for rank in range(1 + ASKED, size) if often[rank]]
        question = Question(
            head=head,
            tail=tail,
            ending=_ENDING,
            references=tuple(right),
            answer=answer,
            candidates=(words[1], *wrong[: CHOICES - 1]),
        )
        context = np.concatenate([words[rank] for rank in order])
        return finish(self, source, place, question, context, must_hold=right)


def counts(words: int, vocabulary: int) -> NDArray[np.int64]:
    """How often each rank appears in a text of about so many words, (vocabulary,)."""
    ranks = np.arange(1, vocabulary + 1)
    often: NDArray[np.int64] = (words * ranks**-_ALPHA / _ZETA).astype(np.int64)
    return often


def _most(room: int, sizes: NDArray[np.int64]) -> int:
    """The most words whose text fits, by halving: the tokens never fall with the words."""
    low, high = _LEAST_WORDS, 2 * room + _LEAST_WORDS
    while high - low > 1:
        middle = (low + high) // 2
        if counts(middle, len(sizes)) @ sizes <= room:
            low = middle
        else:
            high = middle
    return low


register(FrequentWords())
