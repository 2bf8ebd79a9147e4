"""The passkey task as landmark attention (arXiv 2305.16300) states it, with keys of five digits."""

from dataclasses import dataclass

from ropepatch.evals.tasks.assembly import Hidden, Question, finish
from ropepatch.evals.tasks.haystack import weave, window
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, grid_depth, register
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
        needle, tail, *choices = pieces.many(
            [_NEEDLE.format(key=keys[0]), _ENDING, *(f" {key}" for key in keys)]
        )
        question = Question(
            source.opening(_HEAD), tail, _ENDING, (keys[0],), choices[0], tuple(choices)
        )
        budget = self.budget(place.length, question.answer)
        room = self.room(place.length, question.used(budget, [needle]))
        depth = grid_depth(place.number)
        text = window(source.noise, room + len(needle), round(depth * room), rng)
        context, (end,) = weave(text.first(room), [(round(depth * room), needle)])
        return finish(
            self,
            source,
            place,
            question,
            context,
            must_hold=[_NEEDLE.format(key=keys[0])],
            hidden=Hidden(depth, end, text.ids),
        )


register(Passkey())
