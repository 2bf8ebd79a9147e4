"""RULER's questions over documents (arXiv 2404.06654), from a local file: qa_1 SQuAD, qa_2 HotpotQA."""

from dataclasses import dataclass

import numpy as np

from ropepatch.errors import PromptLengthError
from ropepatch.evals.tasks.assembly import Question, finish
from ropepatch.evals.tasks.pieces import Ids, Pieces
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, register
from ropepatch.evals.tasks.source import Source

_RULE = (
    "Answer the question based on the given documents. Only give me the answer and do not output any "
    "other words."
)
_HEAD = f"{_RULE}\n\nThe following are given documents.\n\n"
_QUESTION = f"\n\n{_RULE}\n\nQuestion: {{question}}"
_ENDING = " Answer:"
_BREAK = "\n\n"
_LEAST_DOCUMENT = 8  #: tokens


@dataclass(frozen=True)
class DocumentQuestion(Task):
    """An answer that stands in one or more of many documents. One of the references is enough."""

    answer_tokens: int = 32
    any_reference: bool = True

    def prompt(self, source: Source, place: Place) -> Prompt:
        """Questions in the file's order; its other questions' documents fill the context."""
        rng = self.generator(place)
        asked = source.file_questions(self.name)
        chosen = asked[place.number % len(asked)]
        answer, tail = source.pieces.many(
            [f" {chosen.answers[0]}", _QUESTION.format(question=chosen.text) + _ENDING]
        )
        question = Question(source.opening(_HEAD), tail, _ENDING, chosen.answers, answer)
        pieces = source.pieces
        used = question.used(self.budget(place.length, answer))
        own = [pieces("\n" + text) for text in chosen.documents]
        needed = sum(len(ids) + len(_header(pieces, n)) for n, ids in enumerate(own))
        room = self.room(place.length, used, least=needed)
        own_texts = set(chosen.documents)
        others = [text for text in source.file_documents(self.name) if text not in own_texts]
        others = [others[index] for index in rng.permutation(len(others))]
        filler, left = _filler(pieces, others, room - needed, len(own))
        if left:
            raise PromptLengthError(
                f"{self.name}: the documents of its file leave {left} of {place.length} tokens empty; use "
                "a shorter length, or a file with more documents"
            )
        documents = [*own, *filler]
        order = rng.permutation(len(documents))
        parts = [(_header(pieces, n), documents[index]) for n, index in enumerate(order)]
        context = np.concatenate([ids for part in parts for ids in part])
        stands = [chosen.answers[0]] if any(chosen.answers[0] in text for text in own_texts) else []
        return finish(self, source, place, question, context, must_hold=stands)


def _header(pieces: Pieces, place: int) -> Ids:
    return pieces(f"{_BREAK if place else ''}Document {place + 1}:")


def _filler(pieces: Pieces, texts: list[str], room: int, before: int) -> tuple[list[Ids], int]:
    """Documents for `room` tokens, the last one cut to fit, and the tokens that are still missing.

    Too few tokens for a document are left to the answer.
    """
    filler: list[Ids] = []
    for text in texts:
        room -= len(_header(pieces, before + len(filler)))
        if room < _LEAST_DOCUMENT:
            return filler, 0
        filler.append(pieces("\n" + text)[:room])
        room -= len(filler[-1])
    return filler, room


register(DocumentQuestion("qa_1"), DocumentQuestion("qa_2"))
