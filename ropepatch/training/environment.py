"""With what each session of a run was done: `environment.json`."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from ropepatch import __version__
from ropepatch.precision import PrecisionChoice
from ropepatch.whole_files import write_whole

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets")


def record_session(path: Path, first_step: int, precision: PrecisionChoice) -> None:
    """Append this session, which goes on after `first_step` steps, to those recorded in `path`."""
    before = json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.exists() else []
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "first_step": first_step,
        "python": platform.python_version(),
        "ropepatch": __version__,
        **{package: version(package) for package in _PACKAGES},
        "device": _device(),
        "precision": precision.precision,
        "precision_reason": precision.reason,
        **_git_state(),
    }
    write_whole(path, json.dumps({"sessions": [*before, session]}, indent=2) + "\n")


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _git_state() -> dict[str, str | bool]:
    """Commit of the working directory, and whether tracked files differ from it; empty outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    commit, _, dirty = done.stdout.strip().partition("-")
    return {"git_commit": commit, "git_dirty": bool(dirty)}
