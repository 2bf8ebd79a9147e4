"""An environment as `pip install ropepatch` makes it, from what is installed here.

It holds the packages that the core install needs, and those that they need, as links.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needed(requirements: list[str], known: dict[str, Distribution]) -> dict[str, Distribution]:
    """The distributions of requirements and of what they require, by name, added to `known`."""
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = distribution(requirement.name)
        if found.name not in known:
            known[found.name] = found
            needed(found.requires or [], known)
    return known


def top_level(found: Distribution) -> Iterator[Path]:
    """What a distribution has in site-packages."""
    site = Path(found.locate_file("")).resolve()
    for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        yield site / name


def link_core_packages(site: Path) -> None:
    """Fill a directory with links to the core's packages."""
    for found in needed(PROJECT["dependencies"], {}).values():
        for entry in top_level(found):
            if not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)


def run_in_core(site: Path, directory: Path, program: str) -> dict[str, Any]:
    """What a program prints as JSON, run in a directory with the core install only."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],  # -S leaves the packages that are installed here out
        cwd=directory,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers
