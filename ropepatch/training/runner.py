"""Run a recipe: model, patch, adapter, data and the Trainer, put together."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed

from ropepatch.corpus import load_documents
from ropepatch.errors import CheckpointError
from ropepatch.terminal import quiet_transformers
from ropepatch.training.interrupts import InterruptCallback
from ropepatch.training.models import load_model, load_tokenizer
from ropepatch.training.out_of_memory import IN_LOADING, explain_step, memory_explained
from ropepatch.training.progress import (
    MetricsCallback,
    ProgressCallback,
    ProgressSink,
    forget_metrics_after,
)
from ropepatch.training.recipe import Recipe
from ropepatch.training.requirements import require_machine
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.sequences import tokens_per_step, training_data
from ropepatch.training.trainer import RunTrainer, make_trainer


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in training; the message says what is kept and how to go on."""


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    directory: Path  #: the model, or the adapter where the recipe has `lora`
    steps: int
    loss: float | None  #: of the last logging step, nats per token; None if it was done before
    seconds: float  #: of this session


def train(
    recipe: Recipe,
    progress: ProgressSink | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingResult:
    """Run the recipe to its end, going on from the last good checkpoint in its output_dir."""
    run = RunDirectory(recipe)
    run.claim()
    if run.result.exists():
        return TrainingResult(run.result, recipe.training.max_steps, None, 0.0)
    started = time.perf_counter()
    with quiet_transformers():
        interrupts = InterruptCallback()
        with memory_explained(lambda: IN_LOADING):
            trainer = prepare(recipe, run, progress, [*callbacks, interrupts])
        checkpoint = run.last_good_checkpoint()
        needs = memory_explained(lambda: explain_step(trainer))
        with _explained(run), interrupts.listening(), needs:
            forget_metrics_after(run.metrics, _step_of(checkpoint))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            _save_result(trainer, recipe, run)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds = time.perf_counter() - started
    return TrainingResult(run.result, trainer.state.global_step, losses[-1], seconds)


@contextmanager
def _explained(run: RunDirectory) -> Iterator[None]:
    """Say of a run that breaks off what is kept and how to go on."""
    again = "run the same recipe again to go on"
    try:
        yield
    except KeyboardInterrupt:
        raise TrainingInterrupted(f"stopped; {run.kept()}; {again}") from None
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"could not write to {run.path} ({error.strerror}); {run.kept()}; "
            f"once that is mended, {again}"
        ) from error


def prepare(
    recipe: Recipe,
    run: RunDirectory,
    progress: ProgressSink | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    weights: bool = True,
) -> RunTrainer:
    """The Trainer of a recipe, ready to start; raises for everything that can be wrong before.

    Without weights, nothing is read but the config: for a dry run.
    """
    require_machine(recipe)
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    set_seed(recipe.training.seed)
    documents = load_documents(recipe.data.source, recipe.data.split)
    tokenizer = load_tokenizer(recipe, documents)
    model = load_model(recipe, tokenizer, weights=weights)
    data = training_data(recipe, documents, tokenizer)
    callbacks = [MetricsCallback(run.metrics), *callbacks]
    trainer = make_trainer(recipe, run, model, tokenizer, data, callbacks)
    if progress is not None:
        trainer.add_callback(ProgressCallback(progress, tokens_per_step(recipe)))
    return trainer


def _save_result(trainer: RunTrainer, recipe: Recipe, run: RunDirectory) -> None:
    """The model in its final dtype, or the adapter; there is a `final` only when it is whole."""
    if recipe.model.save_dtype is not None and recipe.lora is None:
        trainer.trained.to(getattr(torch, recipe.model.save_dtype))
    trainer.publish_model(run.result.name)


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.partition("-")[2]) if checkpoint else 0
