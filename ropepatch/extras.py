"""Packages that the core install does without, and the extra of ropepatch that brings each."""

import importlib.util
from importlib.metadata import version

from ropepatch.errors import MissingExtraError

_REPORTS = ("matplotlib", "jinja2")
#: Import names; a test compares them to the extras that pyproject.toml declares.
PACKAGES = {
    "train": ("accelerate", "peft", "datasets", *_REPORTS),
    "eval": _REPORTS,
    "lm-eval": ("lm_eval", "accelerate", "peft"),
}
#: Training uses `activation_checkpointing`, which older releases of transformers do not know.
_TRAINING = (5, 23)


def require_extra(extra: str, what: str) -> None:
    """Raise MissingExtraError where a package of an extra that `what` needs is not installed."""
    for package in PACKAGES[extra]:
        require_package(package, extra, what)
    found = version("transformers")
    if extra == "train" and tuple(map(int, found.split(".")[:2])) < _TRAINING:
        raise MissingExtraError(
            f"{what} needs transformers {'.'.join(map(str, _TRAINING))} or newer, and found {found}; "
            "run pip install 'ropepatch[train]'"
        )


def require_package(package: str, extra: str, what: str) -> None:
    """Raise MissingExtraError where a package is not installed, without importing it."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"{what} needs {package}, which is not installed; run pip install 'ropepatch[{extra}]'"
        )
