"""A copy of the repository in which faults are made and tests are run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_list import HERE, Fault
from watch import RECORD, ROOT

REPOSITORY = HERE.parents[1]
_FLAGS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "watch", "--hypothesis-seed=0")
#: Failures of these kinds say that the faulty code is no code, and not that a test noticed it.
_BROKEN = ("ImportError", "NameError", "SyntaxError")


@dataclass(frozen=True)
class Outcome:
    """What a run of pytest said."""

    word: str  #: "passed", "failed", or "broken": it says nothing about the code
    test: str | None = None  #: the first that failed
    detail: str = ""  #: the end of the output


class Checkout:
    """The tracked files of the repository, copied to `root`."""

    def __init__(self, root: Path, limit: float) -> None:
        self.root = root
        self.limit = limit  #: seconds that one run of pytest may take
        _copy_tracked_files(root)

    @contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        """Within the body, the copy has the fault."""
        path = fault.place(self.root)
        sound = path.read_bytes()
        path.write_text(fault.faulty(path), encoding="utf-8")
        try:
            yield
        finally:
            path.write_bytes(sound)

    def run(self, arguments: list[str]) -> Outcome:
        """Run pytest in the copy until the first failure."""
        record = self.root.with_name("record.jsonl")
        record.unlink(missing_ok=True)
        try:
            code, output = self._pytest(arguments, record)
        except subprocess.TimeoutExpired:
            return Outcome("broken", detail=f"no end after {self.limit:.0f} s")
        lines = record.read_text().splitlines() if record.exists() else []
        first = json.loads(lines[0]) if lines else {"test": None, "exceptions": []}
        detail = "\n".join(output.splitlines()[-25:])
        if code == 0:
            return Outcome("passed")
        # pytest ends with 1 at a failure, and with 2 where xdist stops its workers for it.
        if code not in (1, 2) or not lines or any(kind in _BROKEN for kind in first["exceptions"]):
            return Outcome("broken", first["test"], detail)
        return Outcome("failed", first["test"], detail)

    def _pytest(self, arguments: list[str], record: Path) -> tuple[int, str]:
        environment = os.environ | {
            # Before site-packages, where an editable install leads to the repository itself.
            "PYTHONPATH": os.pathsep.join([str(self.root), str(HERE)]),
            # Bytecode is told by the second and the size of its source: a fault may share both.
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            ROOT: str(self.root),
            RECORD: str(record),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *_FLAGS, *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=self.limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that tests have started
            process.wait()
            raise
        return process.returncode, output


def _copy_tracked_files(root: Path) -> None:
    """Copy what git tracks, as it is in the working tree."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source, target = REPOSITORY / name, root / name
        if source.exists() and not name.startswith("tests/mutations/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
