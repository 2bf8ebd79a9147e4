"""Finished rows: losses and answers of each candidate, kept so that a killed run loses none of them.

RUN_DIR/manifest.json                  what is measured; another protocol or model is refused
RUN_DIR/losses/CANDIDATE/WHAT.npy      float32, rows are NaN until they are done
RUN_DIR/samples_TASK.jsonl             a line for every answer, appended batch by batch
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropepatch.errors import CheckpointError, ConfigError, DataError
from ropepatch.whole_files import write_whole

Rows = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one candidate answered to one prompt; a line of the sample file."""

    candidate: str
    task: str
    length: int
    doc_id: int  #: number of the prompt
    score: float  #: 0…1
    gain: float | None = None  #: nats per answer token
    response: str | None = None  #: what was generated
    target: tuple[str, ...] = ()
    prompt_hash: str = ""


class Samples:
    """Of one candidate, in memory."""

    def __init__(self, candidate: str) -> None:
        self.candidate = candidate
        self.found: dict[tuple[str, int, int], Answer] = {}

    def losses(self, what: str, shape: tuple[int, int]) -> Rows:
        """Rows to be filled, NaN where they are not done."""
        return np.full(shape, np.nan, dtype=np.float32)

    def answers(self, task: str, length: int) -> dict[int, Answer]:
        """What was answered, by the number of the prompt."""
        return {
            n: each for (name, of, n), each in self.found.items() if (name, of) == (task, length)
        }

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep the answers of one batch; one that is there already stays."""
        for answer in answers:
            self.found.setdefault((answer.task, answer.length, answer.doc_id), answer)


class SampleStore:
    """The directory of a run, open for one protocol and its candidates."""

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        """Raises ConfigError where another protocol was measured, CheckpointError for no room."""
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            found = read_manifest(directory)
            _require_same(found, manifest, directory)
            if found is None:
                content = json.dumps(manifest, indent=2) + "\n"
                write_whole(directory / "manifest.json", content)
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"results cannot be written to {directory} ({error.strerror}); name a directory that "
                "can be written and has room"
            ) from error
        self.read = {path: read_answers(path) for path in directory.glob("samples_*.jsonl")}

    def candidate(self, label: str) -> Samples:
        """The rows of one candidate."""
        rows = _StoredSamples(self, label)
        for answers in self.read.values():
            Samples.add(rows, (answer for answer in answers if answer.candidate == label))
        return rows


class _StoredSamples(Samples):
    def __init__(self, store: SampleStore, candidate: str) -> None:
        super().__init__(candidate)
        self.directory = store.directory

    def losses(self, what: str, shape: tuple[int, int]) -> Rows:
        path = self.directory / "losses" / file_name(self.candidate) / f"{what}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Renamed when it is whole, so that a kill leaves no file without its header.
            aside = path.with_suffix(".new")
            np.save(aside.open("wb"), super().losses(what, shape))
            aside.replace(path)
        try:
            rows: Rows = np.load(path, mmap_mode="r+")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is damaged ({error}); remove it to measure it again"
            ) from error
        if rows.shape != shape or rows.dtype != np.float32:
            raise DataError(
                f"{path} holds {rows.dtype} {rows.shape}, expected float32 {shape}; remove it to "
                "measure it again"
            )
        return rows

    def add(self, answers: Iterable[Answer]) -> None:
        new = [a for a in answers if (a.task, a.length, a.doc_id) not in self.found]
        super().add(new)
        by_task: dict[str, list[str]] = {}
        for answer in new:
            by_task.setdefault(answer.task, []).append(json.dumps(asdict(answer)) + "\n")
        for task, lines in by_task.items():
            with (self.directory / f"samples_{task}.jsonl").open("a", encoding="utf-8") as file:
                file.write("".join(lines))


def file_name(label: str) -> str:
    """A label as the name of a file, different for different labels."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in label).strip("-.")
    return f"{plain[-60:]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """What a directory was measured by; None where nothing was."""
    path = directory / "manifest.json"
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); name another directory, or remove this one to measure "
            "again"
        ) from error
    return content


def read_answers(path: Path) -> list[Answer]:
    """All lines of a sample file; a last line that a kill cut off is taken out of it.

    Raises DataError that names the line for any other that is not an answer.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    answers = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            fields = json.loads(line)
            answers.append(Answer(**{**fields, "target": tuple(fields["target"])}))
            if not 0.0 <= answers[-1].score <= 1.0:
                raise ValueError(f"the score is {answers[-1].score!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}, line {number}, is no answer of ropepatch ({error}); remove the line to have "
                "it measured again"
            ) from error
    return answers


def _require_same(
    found: Mapping[str, Any] | None, wanted: Mapping[str, Any], directory: Path
) -> None:
    # What JSON makes of it, as tuples come back as lists.
    asked = json.loads(json.dumps(wanted))
    if found is None or found == asked:
        return
    changed = [
        f"{key} {found.get(key)!r:.60}, now {asked.get(key)!r:.60}"
        for key in [*asked, *(key for key in found if key not in asked)]
        if found.get(key) != asked.get(key)
    ]
    raise ConfigError(
        f"{directory} holds results of another measurement ({'; '.join(changed)}); numbers of two "
        "protocols cannot be compared: name another --output, or ask for the same again"
    )
