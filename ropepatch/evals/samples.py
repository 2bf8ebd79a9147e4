"""Finished rows: losses and answers of each candidate, kept so that a killed run loses none of them.

RUN_DIR/manifest.json                  what is measured; another protocol or model is refused
RUN_DIR/losses/CANDIDATE/WHAT.npy      float32, rows are NaN until they are done
RUN_DIR/samples_TASK.jsonl             a line for every answer, appended batch by batch
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropepatch.errors import CheckpointError, ConfigError, DataError
from ropepatch.evals.answers import Answer
from ropepatch.whole_files import write_whole

Rows = NDArray[np.float32]


class Samples:
    """Of one candidate, in memory."""

    def __init__(self, candidate: str) -> None:
        self.candidate = candidate
        self.found: dict[tuple[str, int], dict[int, Answer]] = {}

    def losses(self, what: str, shape: tuple[int, int]) -> Rows:
        """Rows to be filled, NaN where they are not done."""
        return np.full(shape, np.nan, dtype=np.float32)

    def answers(self, task: str, length: int) -> list[Answer]:
        """What was answered."""
        return list(self.found.get((task, length), {}).values())

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep the answers of one batch; one that is there already stays."""
        for answer in answers:
            self.found.setdefault((answer.task, answer.length), {}).setdefault(
                answer.number, answer
            )


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
            Samples.add(rows, (answer for candidate, answer in answers if candidate == label))
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
        new = [a for a in answers if a.number not in self.found.get((a.task, a.length), {})]
        super().add(new)
        by_task: dict[str, list[str]] = {}
        for answer in new:
            line = json.dumps(_to_json(self.candidate, answer), ensure_ascii=False)
            by_task.setdefault(answer.task, []).append(line + "\n")
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


def read_answers(path: Path) -> list[tuple[str, Answer]]:
    """Candidate and answer of every line; a last line that a kill cut off is taken out of the file.

    Raises DataError that names the line for any other that is not an answer.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    answers = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            answers.append(_from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(
                f"{path}, line {number}, is no answer of ropepatch ({type(error).__name__}: {error}); "
                "remove the line to have it measured again"
            ) from error
    return answers


def _to_json(candidate: str, answer: Answer) -> dict[str, Any]:
    """In the words of lm-evaluation-harness' sample files; a number that is none becomes null."""
    return {
        "candidate": candidate,
        "task": answer.task,
        "length": answer.length,
        "doc_id": answer.number,
        "mode": answer.mode,
        "target": answer.target,
        "resps": [[answer.response]],
        "filtered_resps": [answer.response],
        "score": answer.score,
        "loss": _finite(answer.loss),
        "gain": _finite(answer.gain),
        "prompt_hash": answer.prompt,
    }


def _from_json(row: dict[str, Any]) -> tuple[str, Answer]:
    answer = Answer(
        task=str(row["task"]),
        length=int(row["length"]),
        number=int(row["doc_id"]),
        mode=row["mode"],
        prompt=str(row["prompt_hash"]),
        target=str(row["target"]),
        response=str(row["resps"][0][0]),
        score=float(row["score"]),
        loss=None if row["loss"] is None else float(row["loss"]),
        gain=None if row["gain"] is None else float(row["gain"]),
    )
    if not 0.0 <= answer.score <= 1.0:
        raise ValueError(f"the score is {answer.score!r}")
    return str(row["candidate"]), answer


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


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
