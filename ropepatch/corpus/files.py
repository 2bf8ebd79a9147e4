"""Documents in the reader's own files: text, JSON lines, and directories of both."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ropepatch.corpus.documents import Corpus, Document, Split, standard_library
from ropepatch.errors import DataError

_JSON_LINES = (".jsonl", ".ndjson")
#: What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a directory.
_SAVED_DATASET = ("state.json", "dataset_dict.json")


def text_files(path: Path, *, text_field: str = "text", files: Sequence[str] = ()) -> Corpus:
    """The documents of a file, or of all files below a directory, in the order of their names.

    A text file is one document; of JSON lines, each line's `text_field` is one. Hidden files are
    passed over. `files` are patterns such as `*.py`, of which a file below a directory has to match
    one. Raises DataError for a path without files; reading raises it for what cannot be read.
    """
    found = _list_files(path, files)
    root = path.parent if path.is_file() else path

    def read() -> Iterator[Document | str]:
        for file in found:
            name = file.relative_to(root).as_posix()
            if file.suffix in _JSON_LINES:
                yield from _json_lines(file, name, text_field)
            else:
                yield _text_file(file, name, alone=path.is_file())

    return Corpus(str(path), read)


def read_documents(path: Path) -> list[Document]:
    """All of `text_files` at once."""
    return list(text_files(path))


def load_documents(source: str, split: Split) -> list[Document]:
    """The `stdlib` corpus's split, or all documents at a path, which has no splits of its own."""
    return standard_library(split) if source == "stdlib" else read_documents(Path(source))


def is_saved_dataset(path: Path) -> bool:
    """Whether the datasets library wrote this directory with `save_to_disk`."""
    return any((path / name).is_file() for name in _SAVED_DATASET)


def row_text(row: Mapping[str, object], field: str, name: str) -> Document | str:
    """A row's document, or its name where the field is empty. Raises DataError if it has no such text."""
    if field not in row:
        raise DataError(
            f"{name} has no field {field!r}; the fields are {', '.join(row)}; name the one that holds "
            "text in data.text_field"
        )
    text = row[field]
    if not isinstance(text, str | None):
        raise DataError(
            f"{name}: the field {field!r} is no text but {type(text).__name__}; the fields are "
            f"{', '.join(row)}; name the one that holds text in data.text_field"
        )
    if text is None or not text.strip():
        return name
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name}: the field {field!r} is no text ({error.reason}); mend it"
        ) from error
    return Document(name, text)


def _list_files(path: Path, patterns: Sequence[str]) -> list[Path]:
    if not path.exists():
        raise DataError(f"no file or directory at {path}; check the path")
    if path.is_file():
        if patterns:
            raise DataError(f"data.files chooses from a directory, but {path} is a file")
        return [path]
    if is_saved_dataset(path):
        raise DataError(f"{path} was written by save_to_disk; name it in data.dataset.path")
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file, path)]
    if not files:
        raise DataError(f"the directory {path} holds no files; put text files into it")
    matching = [
        file
        for file in files
        if not patterns or any(file.relative_to(path).match(pattern) for pattern in patterns)
    ]
    if not matching:
        raise DataError(
            f"none of the {len(files)} files below {path} matches data.files ({', '.join(patterns)})"
        )
    return matching


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _json_lines(path: Path, name: str, field: str) -> Iterator[Document | str]:
    with _readable(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                reason = str(error).partition(":")[0]  # json goes on with a line of its own
                raise DataError(
                    f"{path}, line {number}, is not JSON ({reason}); mend the line, or remove it"
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}, is no object with fields, but {row!r:.40}")
            yield row_text(row, field, f"{name}:{number}")


def _text_file(path: Path, name: str, *, alone: bool) -> Document | str:
    """The document; where it is no text, its name, or DataError if there is no other."""
    with _readable(path):
        content = path.read_bytes()
    complaint = _complaint(content)
    if complaint is None:
        return Document(name, content.decode("utf-8"))
    if alone:
        raise DataError(f"{path} {complaint}")
    return name


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; check its permissions"
        ) from error


def _complaint(content: bytes) -> str | None:
    """Why bytes are no text."""
    if b"\0" in content:
        return "is binary (it holds NUL bytes); only UTF-8 text can be read"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return (
            f"is not UTF-8 text (byte {error.start} does not decode); convert it first, for "
            "example with iconv -t utf-8"
        )
    return None if text.strip() else "is empty; remove it or put text into it"
