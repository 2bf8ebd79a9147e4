"""Whole documents, and those that every machine has: the sources of Python's standard library.

The standard library is on every machine that runs this package, it is long, and it reuses names
over thousands of tokens, so a longer context pays. Documents stay whole and keep their names:
statistics resample documents, and no window is ever stitched from two of them.
"""

import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ropepatch.errors import DataError, RopepatchWarning

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
_SHOWN = 3  #: names of what is left out
#: Written by the build: names the directories of one machine.
_GENERATED_PREFIX = "_sysconfigdata"


@dataclass(frozen=True)
class Document:
    """One text and the name that reports give it."""

    name: str
    text: str


class Corpus(Iterable[Document]):
    """Documents that are read anew each time, so that they need not fit in memory.

    `read` yields the name of what it finds no text in; that is left out, which is said once.
    """

    def __init__(
        self, name: str, read: Callable[[], Iterator[Document | str]], identity: str | None = None
    ) -> None:
        self.name = name
        self.read = read
        self.identity = identity  #: of contents that are not read whole to tell them from others
        self._said = False

    def after(self, count: int) -> "Corpus":
        """The documents behind the first `count` ones; reading raises DataError if there are none."""

        def read() -> Iterator[Document | str]:
            found = 0
            for item in self.read():
                found += isinstance(item, Document)
                if found > count or not isinstance(item, Document):
                    yield item
            if 0 < found <= count:
                raise DataError(
                    f"data.held_out keeps {count} documents from training, and {self.name} has "
                    f"{found}; keep fewer"
                )

        identity = None if self.identity is None else f"{self.identity} after {count}"
        return Corpus(self.name, read, identity)

    def __iter__(self) -> Iterator[Document]:
        """Raises DataError at the end if there was no document."""
        found, left_out = 0, _LeftOut()
        for item in self.read():
            if isinstance(item, Document):
                found += 1
                yield item
            else:
                left_out.add(item)
        if not found:
            raise DataError(f"{self.name} has no text{left_out.summary(' in ')}; put text into it")
        if left_out.count and not self._said:
            self._said = True
            total = found + left_out.count
            warnings.warn(
                f"{self.name}: {left_out.count} of {total} are left out, as they have no text in UTF-8"
                f"{left_out.summary(': ')}",
                RopepatchWarning,
                stacklevel=2,
            )


class _LeftOut:
    """How many had no text, and the names of some."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < _SHOWN:
            self.names.append(name)

    def summary(self, before: str) -> str:
        more = ["…"] if self.count > len(self.names) else []
        return before + ", ".join(self.names + more) if self.names else ""


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
