"""What prompts are made of: a tokenizer, a haystack, and files of questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document
from ropepatch.errors import ConfigError, DataError
from ropepatch.evals.tasks.haystack import NOISE, Text, encode_documents
from ropepatch.evals.tasks.pieces import Ids, Pieces
from ropepatch.evals.tasks.questions import FileQuestion, read_questions
from ropepatch.evals.windows import plain_tokens

_QUESTIONS = {"qa_1": "SQuAD", "qa_2": "HotpotQA"}


@dataclass(frozen=True)
class Source:
    """What prompts are made of; tokens are kept, so that one source serves all tasks and lengths."""

    tokenizer: PreTrainedTokenizerBase
    documents: Sequence[Document]  #: the haystack
    bos: bool = False  #: whether every prompt starts with BOS
    lead: str = "\n"  #: what the documents' own sentences start with; "\n# " in Python's sources
    questions: Mapping[str, Path] = field(default_factory=dict)  #: files of qa_1 and qa_2
    pairs: int = 8  #: of the task kv
    _files: dict[str, list[FileQuestion]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.documents:
            raise DataError("there are no documents to hide needles in; give at least one")
        if self.bos and self.tokenizer.bos_token_id is None:
            raise DataError("bos=True, but the tokenizer has no BOS token; use bos=False")
        for name, path in self.questions.items():
            if name not in _QUESTIONS:
                raise ConfigError(
                    f"no task {name!r} reads questions; {' and '.join(_QUESTIONS)} do"
                )
            # A file with mistakes is to be mended before anything is measured.
            self._files[name] = read_questions(path)

    @cached_property
    def pieces(self) -> Pieces:
        """The tokenizer, for pieces of text."""
        return Pieces(self.tokenizer)

    @cached_property
    def essays(self) -> list[Text]:
        """The documents' sentences."""
        return encode_documents(self.documents, self.pieces)

    @cached_property
    def noise_lines(self) -> list[Text]:
        """The noise loop, a line for a round of it."""
        return [Text.of([self.pieces("\n" + " ".join(NOISE))])]

    @cached_property
    def noise(self) -> list[Text]:
        """The noise loop, sentence after sentence."""
        return [Text.of([self.pieces(" " + sentence) for sentence in NOISE])]

    @cached_property
    def texts(self) -> list[Tensor]:
        """Whole documents as tokens, for pairs of reserved tokens."""
        return plain_tokens(self.documents, self.tokenizer)

    def file_questions(self, task: str) -> list[FileQuestion]:
        """The questions of a task's file. Raises ConfigError if none was given."""
        if task not in self._files:
            known = _QUESTIONS[task]
            raise ConfigError(
                f"{task} needs a file of questions, and none was given; give {known}'s development set "
                "(JSON), or JSON lines with question, context and answers"
            )
        return self._files[task]

    def file_documents(self, task: str) -> list[str]:
        """All documents of a task's file, each once."""
        asked = self.file_questions(task)
        return list(dict.fromkeys(text for question in asked for text in question.documents))

    def opening(self, text: str) -> Ids:
        """Tokens that a prompt starts with."""
        return self.pieces.opening(text, bos=self.bos)
