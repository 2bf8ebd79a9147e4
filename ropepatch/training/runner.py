"""Run a recipe: model, patch, adapter, data and the Trainer, put together."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import release_memory
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from ropepatch.checkpoint import write_sidecar
from ropepatch.corpus import load_documents
from ropepatch.errors import CheckpointError, NonFiniteError, RopepatchError
from ropepatch.evals import Evaluation
from ropepatch.terminal import quiet_transformers
from ropepatch.training.before_after import StageSink, evaluate_run, is_evaluated, plan_run
from ropepatch.training.checkpoints import step_of
from ropepatch.training.environment import record_session
from ropepatch.training.interrupts import InterruptCallback
from ropepatch.training.loss_curve import LossCurveCallback, draw_loss_curve
from ropepatch.training.models import load_model, load_tokenizer
from ropepatch.training.progress import (
    MetricsCallback,
    ProgressCallback,
    ProgressSink,
    forget_metrics_after,
)
from ropepatch.training.recipe import Recipe
from ropepatch.training.reporters import logs_below, require_reporters
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.sequences import tokens_per_step, training_data
from ropepatch.training.trainer import RunTrainer, training_arguments


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in training; the message says what is kept and how to go on."""


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    directory: Path  #: the model, or the adapter where the recipe has `lora`
    steps: int
    loss: float | None  #: of the last logging step, nats per token; None if it was done before
    seconds: float  #: of this session
    stages: tuple[Evaluation, ...] = ()  #: measured in this session; the trained model is the last


def train(
    recipe: Recipe,
    progress: ProgressSink | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    stage_progress: StageSink | None = None,
) -> TrainingResult:
    """Run the recipe to its end, going on from the last good checkpoint in its output_dir.

    Then measure what its `evaluation` says. A RopepatchWarning tells of damaged checkpoints.
    """
    require_reporters(recipe.training.report_to)
    run = RunDirectory(recipe)
    run.claim()
    started = time.perf_counter()
    steps, loss = recipe.training.max_steps, None
    stages: tuple[Evaluation, ...] = ()
    with quiet_transformers():
        if not run.result.exists():
            with logs_below(run.path / "logs", recipe.training.report_to):
                steps, loss = _fit(recipe, run, progress, callbacks)
        if not is_evaluated(recipe, run):
            release_memory()  # the Trainer's, which the measured models may need
            with _explained(run):
                stages = evaluate_run(recipe, run, stage_progress)
                draw_loss_curve(run.metrics, tokens_per_step(recipe), stages)
    return TrainingResult(run.result, steps, loss, time.perf_counter() - started, stages)


def _fit(
    recipe: Recipe,
    run: RunDirectory,
    progress: ProgressSink | None,
    callbacks: Sequence[TrainerCallback],
) -> tuple[int, float]:
    """Train and save the result; the steps done in all, and the last loss."""
    interrupts = InterruptCallback()
    trainer = prepare(recipe, run, progress, [*callbacks, interrupts])
    checkpoint = run.last_good_checkpoint()
    first_step = step_of(checkpoint) if checkpoint else 0
    with _explained(run), interrupts.listening():
        forget_metrics_after(run.metrics, first_step)
        record_session(run.path / "environment.json", first_step)
        write_sidecar(trainer.trained, run.path)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        draw_loss_curve(run.metrics, tokens_per_step(recipe))
        _save_result(trainer, recipe, run)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return trainer.state.global_step, losses[-1]


@contextmanager
def _explained(run: RunDirectory) -> Iterator[None]:
    """Say of a run that breaks off what is kept and how to go on."""
    again = "run the same recipe again to go on"
    try:
        yield
    except KeyboardInterrupt:
        raise TrainingInterrupted(f"stopped; {run.kept()}; {again}") from None
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error}; nothing of that step is kept, and {run.kept()}. The same recipe would come "
            "to the same step again: look at the text of it, or lower training.learning_rate, "
            "raise training.warmup_steps or leave out training.bf16, with another output_dir"
        ) from None
    except RopepatchError:
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
) -> RunTrainer:
    """The Trainer of a recipe, ready to start; raises for everything that can be wrong before."""
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    set_seed(recipe.training.seed)
    documents = load_documents(recipe.data.source, recipe.data.split)
    tokenizer = load_tokenizer(recipe, documents)
    model = load_model(recipe, tokenizer)
    if recipe.evaluation is not None:
        plan_run(recipe, model, tokenizer)
    trainer = RunTrainer(
        model=model,
        args=training_arguments(recipe.training, recipe.output_dir),
        train_dataset=training_data(recipe, documents, tokenizer),
        tokenizer=tokenizer,
        callbacks=[
            MetricsCallback(run.metrics),
            LossCurveCallback(run.metrics, tokens_per_step(recipe)),
            *callbacks,
        ],
        run=run,
        embedding_learning_rate=recipe.training.embedding_learning_rate,
    )
    trainer.remove_callback(PrinterCallback)
    if progress is not None:
        trainer.add_callback(ProgressCallback(progress, tokens_per_step(recipe)))
    return trainer


def _save_result(trainer: RunTrainer, recipe: Recipe, run: RunDirectory) -> None:
    """The model in its final dtype, or the adapter; there is a `final` only when it is whole."""
    if recipe.model.save_dtype is not None and recipe.lora is None:
        trainer.trained.to(getattr(torch, recipe.model.save_dtype))
    trainer.publish_model(run.result.name)
