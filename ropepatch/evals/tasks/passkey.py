"""The passkey task as landmark attention (arXiv 2305.16300) states it, with keys of five digits."""

from dataclasses import dataclass

from ropepatch.evals.tasks.assembly import Question
from ropepatch.evals.tasks.one_needle import hide_needle
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, register
from ropepatch.evals.tasks.source import Source
from ropepatch.evals.tasks.words import equally_long, number

CHOICES = 8
_HEAD = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
_NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
_ENDING = "\nWhat is the pass key? The pass key is"


@dataclass(frozen=True)
class Passkey(Task):
    """A number in a loop of five sentences. A fixed number of digits: none is the start of another."""

    name: str = "passkey"
    answer_tokens: int = 10

    def prompt(self, source: Source, place: Place) -> Prompt:
        """Sentences are whole where the number stands; only the loop's two ends are cut."""
        rng = self.generator(place)
        pieces = source.pieces
        keys = equally_long(rng, number(5), CHOICES, pieces)
        sentence = _NEEDLE.format(key=keys[0])
        needle, tail, *choices = pieces.many([sentence, _ENDING, *(f" {key}" for key in keys)])
        question = Question(
            source.opening(_HEAD), tail, _ENDING, (keys[0],), choices[0], tuple(choices)
        )
        return hide_needle(self, source, place, question, source.noise, (sentence, needle), rng)


register(Passkey())
