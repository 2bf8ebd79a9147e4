"""RULER's variable tracking (arXiv 2404.06654): a chain of assignments in noise, after a worked example.

The example's variables are as long as the chain's own, five letters and not RULER's three, so that
they can be the wrong answers of a forced choice.
"""

from dataclasses import dataclass

import numpy as np

from ropepatch.evals.tasks.assembly import Hidden, Question, finish
from ropepatch.evals.tasks.haystack import nearest_border, weave, window
from ropepatch.evals.tasks.pieces import Ids
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, register
from ropepatch.evals.tasks.source import Source
from ropepatch.evals.tasks.words import distinct, equally_long, letters, number

_VARIABLES = 5  #: four hops
_LETTERS = 5
_EXAMPLE_TOKENS = 500
_EXAMPLE_SHARE = 8  #: of a length below 4000 tokens the example takes an eighth, if it can
_HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n"
_QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
_ENDING = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables "
    "are assigned the value {value}, they are:"
)


@dataclass(frozen=True)
class VariableTracking(Task):
    """Which variables have the value, through four hops?"""

    name: str = "vt"
    answer_tokens: int = 30

    def prompt(self, source: Source, place: Place) -> Prompt:
        """The chain's assignments stand in their order, at random places."""
        rng = self.generator(place)
        pieces = source.pieces
        variables = equally_long(rng, letters(_LETTERS), 2 * _VARIABLES, pieces)
        chain, example = variables[:_VARIABLES], variables[_VARIABLES:]
        value, example_value = distinct(rng, number(5), 2)
        ending = _ending(value)
        assigned = _assignments(chain, value)
        answer = pieces.many([" " + " ".join(chain)])[0]
        shown = self._example(source, place.length, example, example_value, rng)
        # Which of the chain comes first in an answer does not matter; the last one is four hops away.
        choices = pieces.many([f" {name}" for name in (chain[-1], *example)])
        question = Question(
            head=np.concatenate([shown, pieces("\n" + _HEAD)]),
            tail=pieces.many([_QUESTION.format(value=value) + ending])[0],
            ending=ending,
            references=tuple(chain),
            answer=answer,
            candidates=tuple(choices),
        )
        needles = pieces.many(assigned)
        budget = self.budget(place.length, answer)
        room = self.room(place.length, question.used(budget, needles))
        depths, context, ends = _hide(source, needles, room, rng)
        hidden = Hidden(depths[0], ends[0])
        return finish(self, source, place, question, context, must_hold=assigned, hidden=hidden)

    def _example(
        self,
        source: Source,
        length: int,
        variables: list[str],
        value: str,
        rng: np.random.Generator,
    ) -> Ids:
        """A small task of the same kind with its answer."""
        head = source.opening(_HEAD)
        tail, *needles = source.pieces.many(
            [
                _QUESTION.format(value=value) + _ending(value) + " " + " ".join(variables),
                *_assignments(variables, value),
            ]
        )
        wanted = min(_EXAMPLE_TOKENS, length // _EXAMPLE_SHARE)
        room = max(0, wanted - len(head) - len(tail) - sum(map(len, needles)))
        return np.concatenate([head, _hide(source, needles, room, rng)[1], tail])


def _ending(value: str) -> str:
    return _ENDING.format(count=_VARIABLES, value=value)


def _assignments(variables: list[str], value: str) -> list[str]:
    values = [value, *(f"VAR {variable}" for variable in variables)]
    return [
        f"\nVAR {variable} = {assigned}"
        for variable, assigned in zip(variables, values, strict=False)
    ]


def _hide(
    source: Source, needles: list[Ids], room: int, rng: np.random.Generator
) -> tuple[list[float], Ids, list[int]]:
    """Depths of the needles, which keep their order; the context; where the needles end in it."""
    depths = sorted(rng.random(len(needles)).tolist())
    first = round(depths[0] * room)
    text = window(source.noise_lines, room, first, rng)
    places = [first, *(max(first, nearest_border(text, round(d * room))) for d in depths[1:])]
    return depths, *weave(text, list(zip(places, needles, strict=True)))


register(VariableTracking())
