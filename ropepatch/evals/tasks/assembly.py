"""The last step of every task: its parts become one prompt, and what must be true of it is checked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ropepatch.errors import DataError
from ropepatch.evals.tasks.pieces import Ids
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task
from ropepatch.evals.tasks.source import Source


@dataclass(frozen=True)
class Question:
    """What is asked at the end of a context, and what is right."""

    head: Ids  #: what stands before the context, BOS included
    tail: Ids  #: the question, and the start of the answer
    ending: str  #: the same start of the answer, as text
    references: tuple[str, ...]
    answer: Ids
    candidates: tuple[Ids, ...] = ()

    def used(self, budget: int, needles: Sequence[Ids] = ()) -> int:
        """Tokens of everything but the haystack."""
        return len(self.head) + len(self.tail) + budget + sum(map(len, needles))


@dataclass(frozen=True)
class Hidden:
    """Where the first needle is in the context, and the context without it."""

    depth: float
    end: int  #: index in the context behind it
    without: Ids | None = None


def finish(
    task: Task,
    source: Source,
    place: Place,
    question: Question,
    context: Ids,
    *,
    must_hold: Sequence[str],
    hidden: Hidden | None = None,
) -> Prompt:
    """The prompt. What the context does not fill is left to the answer: nothing is cut or padded."""
    ids = np.concatenate([question.head, context, question.tail])
    wrong = question.candidates[1:]
    without = None if hidden is None else hidden.without
    if without is not None:
        without = np.concatenate([question.head, without, question.tail])
    prompt = Prompt(
        task=task.name,
        number=place.number,
        length=place.length,
        input_ids=torch.from_numpy(ids),
        references=question.references,
        answer=torch.from_numpy(question.answer),
        candidates=tuple(torch.from_numpy(candidate) for candidate in question.candidates),
        depth=None if hidden is None else hidden.depth,
        distance=None if hidden is None else len(ids) - len(question.head) - hidden.end,
        max_new_tokens=place.length - len(ids),
        chance=1 / (1 + len(wrong)) if wrong else 0.0,
        without=None if without is None else torch.from_numpy(without),
    )
    _check(prompt, task.budget(place.length, question.answer))
    _check_text(prompt, source, question.ending, must_hold)
    return prompt


def _check(prompt: Prompt, budget: int) -> None:
    """Nothing is truncated, and candidates are equally long. Only a mistake of ours can fail here."""
    sizes = {len(candidate) for candidate in prompt.candidates}
    without = prompt.input_ids if prompt.without is None else prompt.without
    exact = prompt.max_new_tokens >= budget and len(without) == len(prompt.input_ids)
    if not exact or len(sizes) > 1:
        raise AssertionError(
            f"{prompt.task} {prompt.number} of {prompt.length} tokens leaves {prompt.max_new_tokens} for "
            f"its answer of {budget}, and has candidates of {sorted(sizes)} tokens"
        )


def _check_text(prompt: Prompt, source: Source, ending: str, must_hold: Sequence[str]) -> None:
    """The tokens say what the task says: needles are whole, and the answer's start comes last."""
    text = _words(source.pieces.text(prompt.input_ids.numpy()))
    answer = _words(source.pieces.text(prompt.answer.numpy()))
    lost = [part for part in must_hold if _words(part) not in text]
    if not text.endswith(_words(ending)):
        lost.append(ending)
    lost += [reference for reference in prompt.references[:1] if _words(reference) not in answer]
    if lost:
        raise DataError(
            f"the tokenizer does not give back what {prompt.task} asks about: {lost[0]!r} is lost in its "
            "tokens; use the tokenizer that was saved with the model"
        )


def _words(text: str) -> str:
    # Some tokenizers keep no line breaks, and no more than one space.
    return " ".join(text.split())
