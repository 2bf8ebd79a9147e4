"""Finished rows: losses and answers of each candidate, kept so that a killed run loses none of them.

RUN_DIR/manifest.json                  what is measured; another protocol or model is refused
RUN_DIR/losses/CANDIDATE/WHAT.npy      float32, rows are NaN until they are done
RUN_DIR/samples_TASK.jsonl             a line for every answer, appended batch by batch
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropepatch.errors import CheckpointError, ConfigError, DataError
from ropepatch.evals.answers import Answer
from ropepatch.evals.statistics import finite_or_none
from ropepatch.whole_files import write_whole

Rows = NDArray[np.float32]


class Samples:
    """Of one candidate, in memory."""

    def __init__(self, candidate: str) -> None:
        self.candidate = candidate
        self.documents: dict[tuple[str, int], Rows] = {}
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

    def finished(self, what: str, document: int) -> Rows | None:
        """The losses of one document, for named perplexity protocols; None where there are none."""
        return self.documents.get((what, document))

    def keep(self, what: str, document: int, losses: Rows) -> None:
        """Keep the losses of one document."""
        self.documents[what, document] = losses


class SampleStore:
    """The directory of a run, open for one protocol and its candidates."""

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        """Raises ConfigError where another protocol was measured, CheckpointError for no room."""
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            found = read_manifest(directory)
            manifest = _joined(found, manifest, directory)
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
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
        if not path.exists():
            _save(path, super().losses(what, shape))
        rows = _loaded(path)
        if rows.shape != shape or rows.dtype != np.float32:
            raise DataError(
                f"{path} holds {rows.dtype} {rows.shape}, expected float32 {shape}; remove it to "
                "measure it again"
            )
        return rows

    def finished(self, what: str, document: int) -> Rows | None:
        path = self._document(what, document)
        return _loaded(path) if path.exists() else None

    def keep(self, what: str, document: int, losses: Rows) -> None:
        _save(self._document(what, document), losses)

    def _document(self, what: str, document: int) -> Path:
        return self.directory / "losses" / file_name(self.candidate) / what / f"{document}.npy"

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


def _save(path: Path, rows: Rows) -> None:
    """Renamed when it is whole, so that a kill leaves no file without its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    with aside.open("wb") as file:
        np.save(file, rows)
    aside.replace(path)


def _loaded(path: Path) -> Rows:
    try:
        rows: Rows = np.load(path, mmap_mode="r+")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it to measure it again") from error
    return rows


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
        "loss": finite_or_none(answer.loss),
        "gain": finite_or_none(answer.gain),
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


def _joined(
    found: Mapping[str, Any] | None, wanted: Mapping[str, Any], directory: Path
) -> Mapping[str, Any]:
    """The manifest with models that were measured before; raises ConfigError where anything differs."""
    if found is None:
        return wanted
    before, now = (_flat(each) for each in (found, json.loads(json.dumps(wanted))))
    changed = [
        f"{key} {before.get(key)!r:.60}, now {now[key]!r:.60}"
        for key in now
        if before.get(key) != now[key] and not (key.startswith("model ") and key not in before)
    ]
    if changed:
        raise ConfigError(
            f"{directory} holds results of another measurement ({'; '.join(changed)}); numbers of two "
            "protocols cannot be compared: name another --output, or ask for the same again"
        )
    return {**wanted, "models": {**found["models"], **wanted["models"]}}


def _flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured and each model, by the names in an error; the protocol's own hash comes last."""
    models = {f"model {name}": value for name, value in manifest.get("models", {}).items()}
    rest = {key: value for key, value in manifest.items() if key not in ("models", "measured")}
    return {**manifest.get("measured", {}), **models, **rest}
