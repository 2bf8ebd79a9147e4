"""Precision of a run: chosen for the device when the run begins, and kept when it goes on."""

import dataclasses
import json
from pathlib import Path
from typing import cast

import torch
import yaml

from ropepatch.errors import ConfigError
from ropepatch.precision import DTYPES, Precision, PrecisionChoice, choose_precision, warn_if_slow
from ropepatch.training.checkpoints import checkpoints
from ropepatch.training.recipe import Recipe

ENVIRONMENT = "environment.json"


def run_precision(recipe: Recipe, began: Precision | None) -> PrecisionChoice:
    """Precision for this session of a run that `began` in one, or that begins now (None).

    Raises ConfigError for fp16 on a CPU.
    """
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    dtype = recipe.model.dtype
    warn_if_slow(f"model.dtype: {dtype}", getattr(torch, dtype), device, instead="float32")
    option = recipe.training.precision
    if began is None or option != "auto":
        return choose_precision(option, device)
    here = choose_precision("auto", device)
    if here.precision == began:
        return here
    if began == "fp16" and device.type == "cpu":
        raise ConfigError(
            "the run began in fp16, which needs a GPU; go on with it on a GPU, or choose another output_dir"
        )
    return PrecisionChoice(began, f"as the run began; a new one would take {here}")


def planned_precision(recipe: Recipe) -> PrecisionChoice:
    """Precision that a run of the recipe would have now, going on in its output_dir or beginning there."""
    directory = Path(recipe.output_dir)
    goes_on = any(checkpoints(directory))
    return run_precision(recipe, precision_at_start(directory) if goes_on else None)


def with_precision(recipe: Recipe, precision: Precision) -> Recipe:
    """The recipe with a precision in place of `auto`."""
    training = dataclasses.replace(recipe.training, precision=precision)
    return dataclasses.replace(recipe, training=training)


def precision_at_start(directory: Path) -> Precision | None:
    """Precision of the last session in a run's directory, which kept that of all before; None for none."""
    return _recorded(directory) or precision_of_old_run(directory)


def precision_of_old_run(directory: Path) -> Precision | None:
    """Precision of a run of ropepatch 0.1, whose sessions did not record it; None for other runs.

    Its recipe says bf16 or not, or says the precision where a later version has claimed the directory.
    """
    if not _sessions(directory) or _recorded(directory):
        return None
    try:
        text = (directory / "recipe.yaml").read_text(encoding="utf-8")
        training = yaml.safe_load(text)["training"]
        if training.get("precision") in DTYPES:
            return cast(Precision, training["precision"])
        return "bf16" if training["bf16"] is True else "fp32"
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return None


def _recorded(directory: Path) -> Precision | None:
    sessions = _sessions(directory)
    precision = sessions[-1].get("precision") if sessions else None
    return precision if precision in DTYPES else None


def _sessions(directory: Path) -> list[dict[str, object]]:
    try:
        text = (directory / ENVIRONMENT).read_text(encoding="utf-8")
        return cast(list[dict[str, object]], json.loads(text)["sessions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
