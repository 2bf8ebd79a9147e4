"""Packages that the core install does without, and the extra of ropepatch that brings each."""

import importlib.util

from ropepatch.errors import MissingExtraError

_REPORTS = ("matplotlib", "jinja2")
#: Import names; a test compares them to the extras that pyproject.toml declares.
PACKAGES = {
    "train": ("accelerate", "peft", "datasets", *_REPORTS),
    "eval": _REPORTS,
    "lm-eval": ("lm_eval", "accelerate", "peft"),
}


def require_extra(extra: str, what: str) -> None:
    """Raise MissingExtraError where a package of an extra that `what` needs is not installed."""
    for package in PACKAGES[extra]:
        require_package(package, extra, what)


def require_package(package: str, extra: str, what: str) -> None:
    """Raise MissingExtraError where a package is not installed, without importing it."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"{what} needs {package}, which is not installed; run pip install 'ropepatch[{extra}]'"
        )
