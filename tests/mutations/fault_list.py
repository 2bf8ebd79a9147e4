"""The faults as data: where each one is, what it changes, and which tests are likely to find it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
REFERENCE = HERE / "reference.yaml"  #: what the reference suite found


class FaultError(Exception):
    """A fault that cannot be applied as it is written."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One hand-made fault."""

    name: str
    harm: str  #: one sentence: what it would do to a user
    file: str  #: where the text was when the fault was written
    old: str  #: occurs exactly once in the package
    new: str
    tests: str  #: pytest arguments, files relative to tests/

    def arguments(self) -> list[str]:
        """The likely tests, as pytest arguments from the root of the repository."""
        return [f"tests/{a}" if a.startswith("test_") else a for a in shlex.split(self.tests)]

    def place(self, root: Path) -> Path:
        """The file below `root` that holds the text once. Raises FaultError.

        The named file counts first. Code moves, so all files of the package are searched where the
        named one is gone or lacks the text.
        """
        named = root / self.file
        if named.is_file() and self.old in named.read_text(encoding="utf-8"):
            holders = [named]
        else:
            files = sorted(path for path in (root / "ropepatch").rglob("*") if path.is_file())
            holders = [path for path in files if self.old.encode() in path.read_bytes()]
        if len(holders) != 1:
            where = ", ".join(str(path.relative_to(root)) for path in holders) or "no file"
            raise FaultError(
                f"{self.name}: the old text is in {where}; allowed: exactly one file. Write the fault "
                "anew for the code of today"
            )
        count = holders[0].read_text(encoding="utf-8").count(self.old)
        if count != 1:
            raise FaultError(f"{self.name}: the old text occurs {count} times in {holders[0]}")
        return holders[0]

    def faulty(self, path: Path) -> str:
        """The text of `path` with the fault in it. Raises FaultError for what does not compile."""
        text = path.read_text(encoding="utf-8").replace(self.old, self.new)
        if path.suffix == ".py":
            try:
                compile(text, str(path), "exec")
            except SyntaxError as error:
                raise FaultError(f"{self.name}: the new text does not compile ({error})") from None
        return text


def load_faults(names: list[str]) -> list[Fault]:
    """All faults in the order of their files, or those that are named. Raises FaultError."""
    faults = [
        Fault(name=name, **fields)
        for path in sorted((HERE / "faults").glob("*.yaml"))
        for name, fields in yaml.safe_load(path.read_text(encoding="utf-8")).items()
    ]
    known = [fault.name for fault in faults]
    twice = {name for name in known if known.count(name) > 1}
    unknown = [name for name in names if name not in known]
    if twice or unknown:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"twice: {', '.join(twice)}"
        raise FaultError(f"names of faults that are {problem}")
    return [fault for fault in faults if not names or fault.name in names]


def load_reference() -> dict[str, Any]:
    """`commit`, and `found_by`: for each fault the test that found it, or None."""
    if not REFERENCE.exists():
        return {"commit": None, "found_by": {}}
    reference: dict[str, Any] = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))
    return reference


def record_reference(commit: str, name: str, test: str | None) -> None:
    """Write which test found a fault at that commit; other faults in the list keep theirs."""
    known = {fault.name for fault in load_faults([])}
    found_by = {**load_reference()["found_by"], name: test}
    found_by = {name: test for name, test in found_by.items() if name in known}
    content = {"commit": commit, "found_by": dict(sorted(found_by.items()))}
    head = "# What the suite of this commit finds; null: not found. Written by run.py --record.\n"
    aside = REFERENCE.with_suffix(".new")
    aside.write_text(head + yaml.safe_dump(content, sort_keys=False, width=1000), "utf-8")
    aside.replace(REFERENCE)
