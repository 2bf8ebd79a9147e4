"""RULER's eight needle tasks (arXiv 2404.06654): one template, other haystacks, keys and values.

Wrong answers of the forced choice stand in the context where it has any (other keys' values); else
they are drawn like the right one.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from ropepatch.evals.tasks.assembly import Hidden, Question, finish
from ropepatch.evals.tasks.haystack import Text, nearest_border, weave, window
from ropepatch.evals.tasks.pieces import Ids, Pieces
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import LEAST_CONTEXT, Place, Task, register
from ropepatch.evals.tasks.source import Source
from ropepatch.evals.tasks.words import Draw, distinct, equally_long, identifier, number, word_pair

DEPTHS = 40  #: even steps from the start to the end of the haystack, of which one is drawn
CHOICES = 8  #: answers in a forced choice, where the context does not decide it
_DRAWS: dict[str, Draw] = {"words": word_pair, "numbers": number(7), "uuids": identifier}

_ONE_HEAD = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
_ONE_QUESTION = "\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
_ONE_ENDING = " The special magic {kind} for {query} mentioned in the provided text is"
_MANY_HEAD = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind}s afterwards.\n"
)
_MANY_QUESTION = (
    "\nWhat are all the special magic {kind}s for {query} mentioned in the provided text?"
)
_MANY_ENDING = " The special magic {kind}s for {query} mentioned in the provided text are"
_NEEDLE = "One of the special magic {kind}s for {key} is: {value}."


@dataclass(frozen=True)
class Niah(Task):
    """Needles with keys and values, some of which are asked for."""

    answer_tokens: int = 128
    haystack: Literal["noise", "essays", "needles"] = "essays"
    keys: int = 1
    values: int = 1  #: of every key
    queries: int = 1  #: keys that are asked for
    key_kind: Literal["words", "uuids"] = "words"
    value_kind: Literal["numbers", "uuids"] = "numbers"

    def prompt(self, source: Source, place: Place) -> Prompt:
        """The first needle is that of the first key asked for."""
        rng = self.generator(place)
        pieces = source.pieces
        keys = distinct(rng, _DRAWS[self.key_kind], self.keys)
        hidden = self.keys * self.values
        drawn = equally_long(rng, _DRAWS[self.value_kind], hidden + CHOICES - 1, pieces)
        values, unused = drawn[:hidden], drawn[hidden:]
        texts = [
            "\n" + self._needle(keys[index // self.values], value)
            for index, value in enumerate(values)
        ]
        needles = pieces.many(texts)
        right = values[: self.queries * self.values]
        ask = partial(self._question, source, keys[: self.queries], right)
        question = ask(values[len(right) :] or (values[1:] if self.queries > 1 else unused))
        budget = self.budget(place.length, question.answer)
        # Of four lines, two are on one side of the needle, so that one of them is whole.
        least = 4 * len(needles[0]) if self.haystack == "needles" else LEAST_CONTEXT
        room = self.room(place.length, question.used(budget, needles), least)
        depths = [float(depth) for depth in rng.integers(DEPTHS, size=hidden) / (DEPTHS - 1)]
        border = round(depths[0] * room)
        text, others = self._text(source, room + len(needles[0]), border, values[0], rng)
        inside = text.first(room)
        places = [border, *(nearest_border(inside, round(d * room)) for d in depths[1:])]
        placed = list(zip(places, needles, strict=True))
        context, ends = weave(inside, placed)
        without = weave(text, placed[1:])[0] if len(right) == 1 else None
        if self.haystack == "needles":
            question = ask(self._whole(pieces, context, others))
        return finish(
            self,
            source,
            place,
            question,
            context,
            must_hold=texts,
            hidden=Hidden(depths[0], ends[0], without),
        )

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self.value_kind[:-1], key=key, value=value)

    def _question(
        self, source: Source, keys: list[str], right: list[str], wrong: list[str]
    ) -> Question:
        one = len(right) == 1
        query = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]
        form = {"kind": self.value_kind[:-1], "query": query}
        ending = (_ONE_ENDING if one else _MANY_ENDING).format(**form)
        asked = (_ONE_QUESTION if one else _MANY_QUESTION).format(**form)
        answer, *choices = source.pieces.many(
            [" " + ", ".join(right), *(f" {value}" for value in (right[0], *wrong[: CHOICES - 1]))]
        )
        return Question(
            head=source.opening((_ONE_HEAD if one else _MANY_HEAD).format(**form)),
            tail=source.pieces.many([asked + ending])[0],
            ending=ending,
            references=tuple(right),
            answer=answer,
            candidates=tuple(choices),
        )

    def _text(
        self, source: Source, length: int, border: int, value: str, rng: np.random.Generator
    ) -> tuple[Text, dict[str, str]]:
        """Haystack, and the values of its own needles by their text."""
        if self.haystack != "needles":
            texts = source.essays if self.haystack == "essays" else source.noise_lines
            return window(texts, length, border, rng), {}
        return self._needles(source.pieces, length, border, value, rng)

    def _needles(
        self, pieces: Pieces, length: int, border: int, value: str, rng: np.random.Generator
    ) -> tuple[Text, dict[str, str]]:
        """A haystack of needles, none of which has the right value."""
        sample = pieces("\n" + self._needle(_DRAWS[self.key_kind](rng), value))
        count = 2 * length // len(sample) + 8
        keys = distinct(rng, _DRAWS[self.key_kind], count)
        values = equally_long(rng, _DRAWS[self.value_kind], count, pieces, like=value)
        others = {
            "\n" + self._needle(key, other): other for key, other in zip(keys, values, strict=True)
        }
        return window([Text.of(pieces.many(list(others)))], length, border, rng), others

    @staticmethod
    def _whole(pieces: Pieces, context: Ids, others: dict[str, str]) -> list[str]:
        """Values of the needles that the window did not cut."""
        text = pieces.text(context)
        return [value for needle, value in others.items() if needle.strip() in text]


register(
    Niah("niah_single_1", haystack="noise"),
    Niah("niah_single_2"),
    Niah("niah_single_3", value_kind="uuids"),
    Niah("niah_multikey_1", keys=4),
    Niah("niah_multikey_2", haystack="needles"),
    Niah("niah_multikey_3", haystack="needles", key_kind="uuids", value_kind="uuids"),
    Niah("niah_multivalue", values=4),
    Niah("niah_multiquery", keys=4, queries=4),
)
