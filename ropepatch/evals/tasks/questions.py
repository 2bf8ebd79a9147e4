"""Questions with their documents from a local file: SQuAD's JSON, HotpotQA's JSON, or JSON lines."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ropepatch.errors import DataError

_FORMATS = (
    "SQuAD's JSON ({\"data\": …}), HotpotQA's JSON (a list of questions), or JSON lines with question, "
    "context and answers"
)


@dataclass(frozen=True)
class FileQuestion:
    """A question, what answers it, and the documents that say so."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Node:
    """A value in a file, and the way to it."""

    value: object
    where: str

    def __getitem__(self, name: str) -> "Node":
        fields = self.value if isinstance(self.value, dict) else {}
        if name not in fields:
            found = f"its fields are {', '.join(fields)}" if fields else f"it is {self.value!r:.40}"
            raise DataError(f"{self.where} has no {name!r}, {found}; files can be {_FORMATS}")
        return Node(fields[name], f"{self.where}.{name}")

    def has(self, name: str) -> bool:
        """Whether a field is there and says something."""
        return isinstance(self.value, dict) and bool(self.value.get(name))

    def items(self) -> "list[Node]":
        """The parts of a list."""
        if not isinstance(self.value, list):
            raise DataError(
                f"{self.where} is no list, but {self.value!r:.40}; files can be {_FORMATS}"
            )
        return [Node(value, f"{self.where}[{n}]") for n, value in enumerate(self.value)]

    def text(self) -> str:
        """Text that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise DataError(
                f"{self.where} is no text, but {self.value!r:.40}; files can be {_FORMATS}"
            )
        return self.value.strip()

    def texts(self) -> tuple[str, ...]:
        """One text or a list of them, each once."""
        many = isinstance(self.value, list)
        return tuple(dict.fromkeys(node.text() for node in (self.items() if many else [self])))


def read_questions(path: Path) -> list[FileQuestion]:
    """All questions of a file that have an answer. Raises DataError for what is not understood."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); check the path") from error
    if not text.strip():
        raise DataError(f"{path} is empty; files can be {_FORMATS}")
    lines = path.suffix in (".jsonl", ".ndjson")
    questions = list(_json_lines(text, path) if lines else _whole(_parse(text, str(path))))
    if not questions:
        raise DataError(f"{path} holds no question with an answer; give a file that does")
    return questions


def _parse(text: str, where: str) -> Node:
    try:
        return Node(json.loads(text), where)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); mend it, or get the file again") from error


def _json_lines(text: str, path: Path) -> Iterator[FileQuestion]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = _parse(line, f"{path}, line {number}")
            yield FileQuestion(
                row["question"].text(), row["answers"].texts(), row["context"].texts()
            )


def _whole(root: Node) -> Iterator[FileQuestion]:
    if isinstance(root.value, list):
        return (_hotpot(row) for row in root.items())
    return (
        FileQuestion(question["question"].text(), answers, (paragraph["context"].text(),))
        for article in root["data"].items()
        for paragraph in article["paragraphs"].items()
        for question in paragraph["qas"].items()
        if (answers := _squad_answers(question))
    )


def _squad_answers(question: Node) -> tuple[str, ...]:
    if question.has("is_impossible"):
        return ()
    return tuple(dict.fromkeys(answer["text"].text() for answer in question["answers"].items()))


def _hotpot(row: Node) -> FileQuestion:
    """Each paragraph is a title and a list of sentences."""
    documents = []
    for paragraph in row["context"].items():
        title, sentences = (*paragraph.items(), Node(None, paragraph.where))[:2]
        documents.append(f"{title.text()}\n{''.join(str(s.value) for s in sentences.items())}")
    return FileQuestion(row["question"].text(), (row["answer"].text(),), tuple(documents))
