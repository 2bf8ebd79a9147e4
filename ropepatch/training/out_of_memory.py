"""What is said of a run that needed more memory than there is: how much, and what lowers it most."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ropepatch.errors import OutOfMemoryError, RopepatchError
from ropepatch.training.memory import (
    MemoryEstimate,
    cropped,
    estimate_memory,
    in_units,
    longest_batch,
)
from ropepatch.training.models import load_model
from ropepatch.training.recipe import Recipe, parse_recipe, recipe_tree
from ropepatch.training.requirements import require_machine
from ropepatch.training.run_directory import MEMORY_ONLY, RunDirectory
from ropepatch.training.trainer import RunTrainer, make_trainer

Knob = dict[str, object]  #: keys of a recipe, with dots, and other values for them

_ON_CPU = ("can't allocate memory", "not enough memory")  # torch has no class for it there
_NAMED = 3


IN_LOADING = (
    "out of memory before the first step; `ropepatch train RECIPE --dry-run` says what a run takes; "
    "give model.dtype=bfloat16 or use a smaller model"
)


@contextmanager
def memory_explained(explain: Callable[[], str]) -> Iterator[None]:
    """Raise OutOfMemoryError, with what `explain` says, for each way in which torch runs out of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemoryError(explain()) from error


def in_evaluation(run: RunDirectory) -> str:
    """What to do about a trained model that is too large to be measured as the recipe says."""
    return (
        f"out of memory in the evaluation; {run.kept()}; run the same recipe again with shorter "
        "evaluation.lengths, or with evaluation: null to measure nothing"
    )


def knobs(recipe: Recipe) -> list[Knob]:
    """Changes of a recipe that may lower its memory; some may not be possible."""
    training, data = recipe.training, recipe.data
    sequences = training.per_device_batch_size * training.gradient_accumulation
    found: list[Knob] = [
        {"training.per_device_batch_size": 1, "training.gradient_accumulation": sequences},
        {"training.gradient_checkpointing": True},
        {"training.gradient_checkpointing": True, "training.offload_activations": True},
        {"training.chunked_loss": True},
        {"training.precision": "bf16"},
    ]
    if recipe.patch is not None:
        target = data.length if data.positions is None else data.positions.target
        found.append({"data.length": data.length // 2, "data.positions.target": target})
    if recipe.adapter is None:
        return [*found, {"lora.preset": "lora"}]
    return [*found, {"model.dtype": "bfloat16"}, {"model.quantization": "nf4"}]


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in _ON_CPU)


def explain_step(trainer: RunTrainer) -> str:
    """What a step takes, what lowers that most, and what is kept of a run that broke off."""
    run = trainer.run
    estimate = _estimate_changed(trainer, {})
    assert estimate is not None  # it is the recipe that was running
    parts = ", ".join(f"{name} {in_units(count)}" for name, count in estimate.parts.items())
    found = [(knob, _estimate_changed(trainer, knob)) for knob in knobs(run.recipe)]
    lower = sorted(
        (other.peak, " ".join(f"{key}={_as_yaml(value)}" for key, value in knob.items()))
        for knob, other in found
        if other is not None and other.peak < estimate.peak
    )
    advice = "; ".join(f"{knob} ({in_units(peak)})" for peak, knob in lower[:_NAMED])
    return (
        f"out of memory: a step of this run takes about {in_units(estimate.peak)} ({parts}); "
        f"what lowers that most: {advice or 'a smaller model'}; {run.kept()}; a changed recipe goes on "
        f"from a checkpoint if only training.{', '.join(MEMORY_ONLY)} changed, else give it another "
        "output_dir"
    )


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _estimate_changed(trainer: RunTrainer, knob: Knob) -> MemoryEstimate | None:
    """Of the run with other values in its recipe; None where they are refused."""
    try:
        recipe = _changed(trainer.run.recipe, knob)
        require_machine(recipe)
        model = load_model(recipe, trainer.tokenizer, weights=False)
    except RopepatchError:
        return None
    # The documents have been read; what is in a batch does not matter.
    first = longest_batch(trainer)[: recipe.training.per_device_batch_size]
    samples = cropped(first, max(recipe.lengths))
    changed = make_trainer(RunDirectory(recipe), model, trainer.tokenizer, samples)
    return estimate_memory(changed, samples)


def _changed(recipe: Recipe, knob: Knob) -> Recipe:
    tree = copy.deepcopy(recipe_tree(recipe))
    for dotted, value in knob.items():
        section: dict[str, Any] = tree
        *sections, key = dotted.split(".")
        for name in sections:
            section[name] = section[name] or {}
            section = section[name]
        section[key] = value
    return parse_recipe(tree)
