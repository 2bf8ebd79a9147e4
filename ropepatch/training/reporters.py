"""`training.report_to`: which services can be reported to here, and where they keep their logs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers.integrations import (  # type: ignore[attr-defined]
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from ropepatch.errors import ConfigError
from ropepatch.spelling import did_you_mean

#: Where the package is not called as its reporter is.
_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
#: The variables by which reporters are told where to keep files; others take output_dir, or keep none.
_DIRECTORIES = {
    "swanlab": "SWANLAB_LOG_DIR",
    "tensorboard": "TENSORBOARD_LOGGING_DIR",
    "trackio": "TRACKIO_DIR",
    "wandb": "WANDB_DIR",
}


def require_reporters(names: Sequence[str]) -> None:
    """Raise ConfigError for reporters that transformers does not know, or that are not installed."""
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            hint = did_you_mean(name, list(INTEGRATION_TO_CALLBACK), quoted=False)
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ConfigError(
                f"training.report_to: there is no reporter {name!r}{hint or f'; known: {known}'}"
            )
        if name not in installed:
            package = _PACKAGES.get(name, name)
            raise ConfigError(
                f"training.report_to: {name} is not installed or not set up; run pip install "
                f"{package}, or leave it out (installed: {', '.join(installed) or 'none'})"
            )


@contextmanager
def logs_below(directory: Path, names: Sequence[str]) -> Iterator[None]:
    """Within the body, reporters keep their logs in `directory`, unless the environment says where."""
    unset = [name for name in names if _DIRECTORIES.get(name, "") not in {"", *os.environ}]
    for name in unset:
        (directory / name).mkdir(parents=True, exist_ok=True)
        os.environ[_DIRECTORIES[name]] = str((directory / name).resolve())
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(_DIRECTORIES[name], None)
