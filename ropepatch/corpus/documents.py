"""Whole documents: the sources of Python's standard library, or the reader's own text files.

The standard library is on every machine that runs this package, it is long, and it reuses names
over thousands of tokens, so a longer context pays. Documents stay whole and keep their names:
statistics resample documents, and no window is ever stitched from two of them.
"""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ropepatch.errors import DataError

Split = Literal["train", "held_out"]

#: Never trained on. Chosen to exist in Python 3.11 to 3.14, to be long, to cover many subjects,
#: and to have no near-copy among the modules that are trained on.
HELD_OUT_MODULES: tuple[str, ...] = (
    "argparse",
    "bdb",
    "calendar",
    "configparser",
    "difflib",
    "dis",
    "doctest",
    "email.message",
    "enum",
    "fractions",
    "ftplib",
    "functools",
    "heapq",
    "http.client",
    "http.cookiejar",
    "http.server",
    "imaplib",
    "inspect",
    "logging",
    "logging.handlers",
    "mailbox",
    "optparse",
    "pdb",
    "pickle",
    "pickletools",
    "platform",
    "plistlib",
    "pprint",
    "random",
    "shutil",
    "smtplib",
    "socket",
    "ssl",
    "statistics",
    "subprocess",
    "tarfile",
    "tempfile",
    "threading",
    "tokenize",
    "traceback",
    "typing",
    "unittest.mock",
    "urllib.request",
    "uuid",
    "xml.dom.minidom",
    "xmlrpc.client",
)

#: `encodings` is code tables; `lib2to3` and `distutils` hold near-copies of held-out modules and
#: are gone from newer Pythons; bundled packages are not the standard library.
_EXCLUDED_PACKAGES = frozenset(
    {"site-packages", "dist-packages", "encodings", "lib2to3", "distutils", "_bundled"}
)
#: Written by the build: names the directories of one machine.
_GENERATED_PREFIX = "_sysconfigdata"


@dataclass(frozen=True)
class Document:
    """One text and the name that reports give it."""

    name: str
    text: str


def standard_library(split: Split) -> list[Document]:
    """The modules of the running Python's standard library, sorted by name.

    `held_out` are those of HELD_OUT_MODULES; `train` are all others, without the tests of the
    held-out ones. Distributions that leave out `test` give a smaller train split.
    """
    held_out = split == "held_out"
    documents = [
        document
        for document in _library_documents()
        if (document.name in HELD_OUT_MODULES) == held_out and not _tests_held_out(document.name)
    ]
    if not documents:
        raise DataError(
            f"the standard library at {_library_directory()} has no readable source of the "
            f"{split} split; pass the path of a text file or of a directory of text files instead"
        )
    return sorted(documents, key=lambda document: document.name)


def read_documents(path: Path) -> list[Document]:
    """A text file as one document, or every file below a directory as one each, sorted by name.

    Raises DataError for a path that holds no files, and for a file that is not UTF-8 text.
    """
    if not path.exists():
        raise DataError(f"no file or directory at {path}; check the path")
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    readable = [file for file in files if file.is_file() and not _hidden(file, path)]
    if not readable:
        raise DataError(f"the directory {path} holds no files; put text files into it")
    root = path.parent if path.is_file() else path
    return [Document(file.relative_to(root).as_posix(), _read_text(file)) for file in readable]


def load_documents(source: str, split: Split) -> list[Document]:
    """The `stdlib` corpus's split, or all documents at a path, which has no splits of its own."""
    return standard_library(split) if source == "stdlib" else read_documents(Path(source))


def _library_directory() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _library_documents() -> Iterator[Document]:
    root = _library_directory()
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if _EXCLUDED_PACKAGES.intersection(relative.parts) or path.name.startswith(
            _GENERATED_PREFIX
        ):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # test data that is broken on purpose, or unreadable to this user
        if text.strip() and "\0" not in text:
            yield Document(_module_name(relative), text)


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _tests_held_out(name: str) -> bool:
    """Whether a module of `test` is named after a held-out one: test.test_http_cookiejar."""
    subjects = {part.removeprefix("test_") for part in name.split(".") if part.startswith("test_")}
    names = {module.replace(".", "_") for module in HELD_OUT_MODULES}
    leaves = {module.rpartition(".")[2] for module in HELD_OUT_MODULES}
    return bool(subjects & (names | leaves))


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; check its permissions"
        ) from error
    if b"\0" in content:
        raise DataError(f"{path} is binary (it holds NUL bytes); only UTF-8 text can be read")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} does not decode); convert it first, for "
            "example with iconv -t utf-8"
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty; remove it or put text into it")
    return text
