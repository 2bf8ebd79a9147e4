"""Prompts with one needle between two whole sentences of a haystack, at eleven depths in turn."""

from collections.abc import Sequence

import numpy as np

from ropepatch.evals.tasks.assembly import Hidden, Question, finish
from ropepatch.evals.tasks.haystack import Text, weave, window
from ropepatch.evals.tasks.pieces import Ids
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, grid_depth
from ropepatch.evals.tasks.source import Source


def hide_needle(
    task: Task,
    source: Source,
    place: Place,
    question: Question,
    haystack: Sequence[Text],
    needle: tuple[str, Ids],
    rng: np.random.Generator,
) -> Prompt:
    """The prompt; `needle` is a text and its tokens."""
    text, ids = needle
    budget = task.budget(place.length, question.answer)
    room = task.room(place.length, question.used(budget, [ids]))
    depth = grid_depth(place.number)
    around = window(haystack, room + len(ids), round(depth * room), rng)
    context, (end,) = weave(around.first(room), [(round(depth * room), ids)])
    hidden = Hidden(depth, end, around.ids)
    return finish(task, source, place, question, context, must_hold=[text], hidden=hidden)
