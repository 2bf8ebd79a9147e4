"""Checkpoints of a run by step, and whether one is still as it was written."""

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"  #: in the format of sha256sum, which can check it too


def checkpoints(directory: Path) -> list[Path]:
    """`checkpoint-N` of a run, the newest first."""
    found = directory.glob("checkpoint-*")
    numbered = [path for path in found if path.name.partition("-")[2].isdigit()]
    return sorted(numbered, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that had been done when a checkpoint was written."""
    return int(checkpoint.name.partition("-")[2])


def seal(checkpoint: Path) -> None:
    """Write down the checksum of every file of a checkpoint."""
    lines = [f"{_digest(checkpoint / name)}  {name}\n" for name in _files(checkpoint)]
    (checkpoint / SUMS).write_text("".join(lines), encoding="utf-8")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that was sealed: "optimizer.pt is damaged"; None where it is whole.

    Every file is read to its end.
    """
    try:
        lines = (checkpoint / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        there = _files(checkpoint)
        for name in sorted({*sums, *there}):
            if name not in there:
                return f"{name} is missing"
            if sums.get(name) != _digest(checkpoint / name):
                return f"{name} is damaged"
    except (OSError, UnicodeDecodeError):
        return f"{SUMS} or a file that it names cannot be read"
    return None


def _files(checkpoint: Path) -> list[str]:
    """All files that are sealed, by their path within the checkpoint."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return sorted(path.relative_to(checkpoint).as_posix() for path in files if path.name != SUMS)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
