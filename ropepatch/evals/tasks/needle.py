"""A sentence in the style of the text around it, whose beginning the prompt's end repeats.

Its instructions are none, so that it fits into 64 tokens and asks nothing of a model but to look back.
"""

from dataclasses import dataclass

from ropepatch.evals.tasks.assembly import Question
from ropepatch.evals.tasks.one_needle import hide_needle
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, register
from ropepatch.evals.tasks.source import Source
from ropepatch.evals.tasks.words import equally_long, number, word_pair

CHOICES = 8
_DIGITS = 5
_ENDING = "The number of the {key} is"


@dataclass(frozen=True)
class Needle(Task):
    """A number in real text, at eleven depths in turn."""

    name: str = "needle"
    answer_tokens: int = 10

    def prompt(self, source: Source, place: Place) -> Prompt:
        """The needle stands between two whole sentences at its exact depth."""
        rng = self.generator(place)
        pieces = source.pieces
        values = equally_long(rng, number(_DIGITS), CHOICES, pieces)
        ending = source.lead + _ENDING.format(key=word_pair(rng).replace("-", " "))
        sentence = f"{ending} {values[0]}."
        needle, tail, *choices = pieces.many([sentence, ending, *(f" {value}" for value in values)])
        question = Question(
            source.opening(""), tail, ending, (values[0],), choices[0], tuple(choices)
        )
        return hide_needle(self, source, place, question, source.essays, (sentence, needle), rng)


register(Needle())
