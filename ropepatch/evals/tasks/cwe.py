"""RULER's common words (arXiv 2404.06654): ten words of a numbered list appear ten times as often."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ropepatch.evals.tasks.assembly import Question, finish
from ropepatch.evals.tasks.pieces import Ids, Pieces
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, register
from ropepatch.evals.tasks.source import Source
from ropepatch.evals.tasks.words import distinct_words

COMMON = 10
CHOICES = 8
#: Shorter prompts have smaller counts, as in RULER.
FULL_LENGTH = 4096
_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
_ENDING = " Answer: The top 10 words that appear most often in the list are:"


@dataclass(frozen=True)
class Counts:
    """How often words appear."""

    common: int
    others: int
    example_words: int  #: different ones in the worked example
    example_common: int
    example_others: int


FULL = Counts(common=30, others=3, example_words=40, example_common=10, example_others=3)
SHORT = Counts(common=6, others=1, example_words=20, example_common=3, example_others=1)


@dataclass(frozen=True)
class CommonWords(Task):
    """The ten most common words of a list, after a worked example."""

    name: str = "cwe"
    answer_tokens: int = 120

    def prompt(self, source: Source, place: Place) -> Prompt:
        """As many different words as fit; what one more would not fill is left to the answer."""
        rng = self.generator(place)
        counts = FULL if place.length >= FULL_LENGTH else SHORT
        pieces = source.pieces
        most = place.length // (3 * counts.others)  # a number, its dot and its word
        words = distinct_words(rng, counts.example_words + COMMON + most)
        shown, words = words[: counts.example_words], words[counts.example_words :]
        common, others = _comparable_first(pieces, words[:COMMON], words[COMMON:]), words[COMMON:]
        head = source.opening(_HEAD + _example(shown, counts, rng) + "\n" + _HEAD)
        answer, tail = pieces.many([_answer(common), _QUESTION + _ENDING])
        budget = self.budget(place.length, answer)
        used = len(head) + len(tail) + budget
        costs = _costs(pieces, common, others, counts)
        room = self.room(place.length, used, least=int(costs[1]))
        others = others[: int(np.searchsorted(costs, room, side="right")) - 1]
        question = Question(
            head=head,
            tail=tail,
            ending=_ENDING,
            references=tuple(common),
            answer=answer,
            candidates=_candidates(pieces, common, others),
        )
        entries = _entries(common, others, counts.common, counts.others, rng)
        context = np.concatenate([pieces(part) for part in entries])
        return finish(self, source, place, question, context, must_hold=common)


def _entries(
    common: list[str], others: list[str], often: int, seldom: int, rng: np.random.Generator
) -> list[str]:
    """Numbers and words in turn, `1.`, ` word`, ` 2.`, ` word`, in random order of the words."""
    words = common * often + others * seldom
    parts = (
        (_number(place), f" {words[index]}")
        for place, index in enumerate(rng.permutation(len(words)))
    )
    return [part for entry in parts for part in entry]


def _number(place: int) -> str:
    return f" {place + 1}." if place else "1."


def _example(words: list[str], counts: Counts, rng: np.random.Generator) -> str:
    common, others = words[:COMMON], words[COMMON:]
    entries = _entries(common, others, counts.example_common, counts.example_others, rng)
    return "".join(entries) + _QUESTION + _ENDING + _answer(common)


def _answer(words: list[str]) -> str:
    return "".join(f" {place + 1}. {word}" for place, word in enumerate(words))


def _costs(pieces: Pieces, common: list[str], others: list[str], counts: Counts) -> Ids:
    """Tokens of the list with 0, 1, 2, … of the other words, ascending."""
    sizes = [len(pieces(f" {word}")) for word in (*common, *others)]
    entries = COMMON * counts.common + counts.others * np.arange(len(others) + 1)
    numbers = [len(pieces(_number(place))) for place in range(int(entries[-1]))]
    others_cost = np.cumsum([0, *sizes[COMMON:]]) * counts.others
    costs: Ids = np.cumsum([0, *numbers])[entries] + others_cost
    return costs + counts.common * sum(sizes[:COMMON])


def _comparable_first(pieces: Pieces, common: list[str], others: list[str]) -> list[str]:
    """The common words, first that which the most of the other words are as long as."""
    sizes = Counter(len(pieces(f" {word}")) for word in others)
    return sorted(common, key=lambda word: -sizes[len(pieces(f" {word}"))])


def _candidates(pieces: Pieces, common: list[str], others: list[str]) -> tuple[Ids, ...]:
    """The first of the answer, and as many of the other words as are equally long."""
    right, *wrong = pieces.many([f" 1. {word}" for word in (common[0], *others)])
    fitting = [ids for ids in wrong if len(ids) == len(right)]
    return (right, *fitting[: CHOICES - 1])


register(CommonWords())
