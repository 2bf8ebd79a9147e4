"""Pytest plugin of the runner: refuses another copy of the package, and records the first failure."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = "ROPEPATCH_MUTATIONS_ROOT"  #: environment variable: the copy whose package is tested
RECORD = "ROPEPATCH_MUTATIONS_RECORD"  #: environment variable: file with a line for each failure


def pytest_configure(config: pytest.Config) -> None:
    """Raise UsageError unless `import ropepatch` finds the package of the copy."""
    import ropepatch

    found = Path(ropepatch.__file__).resolve()
    if not found.is_relative_to(Path(os.environ[ROOT]).resolve()):
        raise pytest.UsageError(f"ropepatch is imported from {found}, not from the copy")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the name of the exception to the report, which also reaches the main process of xdist."""
    outcome: Any = yield
    report = outcome.get_result()
    report.exception_names = (
        [kind.__name__ for kind in call.excinfo.type.__mro__] if call.excinfo else []
    )


def pytest_runtest_logreport(report: Any) -> None:
    """Record a test that failed, be it in its setup."""
    if report.failed:
        _record({"test": report.nodeid, "exceptions": report.exception_names})


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a test file that could not be imported."""
    if report.failed:
        _record({"test": report.nodeid, "exceptions": ["ImportError"]})


def _record(line: dict[str, Any]) -> None:
    with Path(os.environ[RECORD]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
