"""Run a recipe: model, patch, adapter, data and the Trainer, put together."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate.utils import release_memory
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from ropepatch.adapters.pretrained import pretrained_model
from ropepatch.checkpoint import write_sidecar
from ropepatch.errors import CheckpointError, NonFiniteError, RopepatchError
from ropepatch.evals import Evaluation
from ropepatch.precision import PrecisionChoice
from ropepatch.terminal import quiet_transformers
from ropepatch.training.before_after import StageSink, evaluate_run, is_evaluated, plan_measurement
from ropepatch.training.checkpoints import step_of
from ropepatch.training.distributed import refuse_devices, refuse_parts
from ropepatch.training.environment import record_session
from ropepatch.training.inputs import require_same_inputs
from ropepatch.training.interrupts import InterruptCallback
from ropepatch.training.loss_curve import LossCurveCallback, draw_loss_curve
from ropepatch.training.models import check_lengths, load_model, load_tokenizer
from ropepatch.training.out_of_memory import (
    IN_LOADING,
    explain_step,
    in_evaluation,
    memory_explained,
)
from ropepatch.training.processes import (
    from_main,
    processes,
    refuse_odd_launch,
    require_same_processes,
    together,
)
from ropepatch.training.progress import (
    LastStepCallback,
    MetricsCallback,
    ProgressCallback,
    ProgressSink,
    forget_metrics_after,
)
from ropepatch.training.recipe import Recipe
from ropepatch.training.reporters import logs_below, require_reporters
from ropepatch.training.requirements import require_machine
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.run_precision import (
    ENVIRONMENT,
    precision_at_start,
    run_precision,
    with_precision,
)
from ropepatch.training.sequences import open_corpus, tokens_per_step, training_data
from ropepatch.training.stages import StageCallback
from ropepatch.training.token_cache import Tell
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
    stages: tuple[Evaluation, ...] = ()  #: measured in this session, the trained model last


def train(
    recipe: Recipe,
    progress: ProgressSink | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    tell: Tell | None = None,
    announce: Tell | None = None,
    measured: StageSink | None = None,
) -> TrainingResult:
    """Run the recipe to its end, going on from the last good checkpoint in its output_dir.

    Then measure what its `evaluation` says. `progress` is called after every step, `tell` with what is
    prepared before the first, `announce` with the precision and its reason, `measured` during the
    evaluation. Damaged checkpoints are a RopepatchWarning.
    """
    run = RunDirectory(recipe)
    sinks = _Sinks(progress, callbacks, tell, announce, measured)
    with ExitStack() as held:
        start = from_main(lambda: _open(run, held))
        return _run(run, start, sinks)


@dataclasses.dataclass(frozen=True)
class _Sinks:
    """Functions that a run calls on its way."""

    progress: ProgressSink | None
    callbacks: Sequence[TrainerCallback]
    tell: Tell | None
    announce: Tell | None
    measured: StageSink | None


@dataclasses.dataclass(frozen=True)
class _Start:
    """Where a session of a run begins."""

    checkpoint: Path | None
    precision: PrecisionChoice | None  #: None: the run is finished


def _run(run: RunDirectory, start: _Start, sinks: _Sinks) -> TrainingResult:
    recipe = run.recipe
    started = time.perf_counter()
    steps, loss = recipe.training.max_steps, None
    stages: tuple[Evaluation, ...] = ()
    with quiet_transformers():
        if start.precision is not None:
            with logs_below(run.path / "logs", recipe.training.report_to):
                chosen = RunDirectory(with_precision(recipe, start.precision.precision))
                with together(), memory_explained(lambda: IN_LOADING):
                    trainer = prepare(chosen, sinks.progress, sinks.callbacks, sinks.tell)
                if sinks.announce is not None:
                    sinks.announce(f"precision: {start.precision}")
                steps, loss = _fit(trainer, start.checkpoint, start.precision)
                del trainer
        if processes().is_main_process and not is_evaluated(run):
            release_memory()  # the Trainer's, which the measured models may need
            with _explained(run), memory_explained(lambda: in_evaluation(run)):
                stages = evaluate_run(run, sinks.measured)
                draw_loss_curve(run.metrics, tokens_per_step(recipe), stages)
    return TrainingResult(run.result, steps, loss, time.perf_counter() - started, stages)


def check_launch(recipe: Recipe) -> None:
    """Raise ConfigError where these processes cannot run the recipe, or not report to what it says."""
    refuse_odd_launch()
    refuse_devices(recipe.distributed)
    require_reporters(recipe.training.report_to)


def _open(run: RunDirectory, held: ExitStack) -> _Start:
    """Claim the directory for a launch that can run its recipe; the checkpoint and precision to go on with.

    No other launch has the directory until `held` is left.
    """
    check_launch(run.recipe)
    began = precision_at_start(run.path)  # before the claim, which writes the recipe of a run anew
    held.enter_context(run.claimed())
    if run.has_result():
        return _Start(None, None)
    checkpoint = run.last_good_checkpoint()
    if checkpoint is not None:
        require_same_processes(checkpoint)
    return _Start(checkpoint, run_precision(run.recipe, began if checkpoint else None))


def _fit(
    trainer: RunTrainer, checkpoint: Path | None, precision: PrecisionChoice
) -> tuple[int, float]:
    """Train and save the result; the steps done in all, and the last loss."""
    run = trainer.run

    def start() -> None:
        first_step = step_of(checkpoint) if checkpoint else 0
        require_same_inputs(trainer, run.path / "inputs.json", is_new=checkpoint is None)
        forget_metrics_after(run.metrics, first_step)
        record_session(run.path / ENVIRONMENT, first_step, precision)
        write_sidecar(trainer.trained, run.path)

    interrupts = InterruptCallback()
    trainer.add_callback(interrupts)
    needs = memory_explained(lambda: explain_step(trainer))
    with _explained(run), interrupts.listening(), needs:
        from_main(start)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if processes().is_main_process:
            draw_loss_curve(run.metrics, tokens_per_step(run.recipe))
        _save_result(trainer)
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
            "raise training.warmup_steps or set training.precision to fp32, with another output_dir"
        ) from None
    except RopepatchError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"could not write to {run.path} ({error.strerror}); {run.kept()}; "
            f"once that is mended, {again}"
        ) from error


def prepare(
    run: RunDirectory,
    progress: ProgressSink | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    tell: Tell | None = None,
    *,
    weights: bool = True,
) -> RunTrainer:
    """The Trainer of a run, ready to start; raises for everything that can be wrong before.

    Without weights, nothing is read of a checkpoint but its config and tokenizer: for a dry run.
    """
    recipe = run.recipe
    require_machine(recipe)
    check_lengths(recipe)
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    set_seed(recipe.training.seed)
    tokenizer, data = _sequences(recipe, tell)
    model = load_model(recipe, tokenizer, weights=weights)
    refuse_parts(recipe.distributed, model, data)
    if recipe.evaluation is not None:
        plan_measurement(recipe, model, tokenizer)
    callbacks = [LastStepCallback(), *_records(run, progress), *callbacks]
    trainer = make_trainer(run, model, tokenizer, data, callbacks)
    if recipe.stages:
        trainer.add_callback(StageCallback(recipe, pretrained_model(model)))
    return trainer


def _records(run: RunDirectory, progress: ProgressSink | None) -> list[TrainerCallback]:
    """What writes down and tells how the run goes, in the one process that does."""
    if not processes().is_main_process:
        return []
    tokens = tokens_per_step(run.recipe)
    told = [] if progress is None else [ProgressCallback(progress, tokens)]
    return [MetricsCallback(run.metrics), LossCurveCallback(run.metrics, tokens), *told]


def _sequences(
    recipe: Recipe, tell: Tell | None
) -> tuple[PreTrainedTokenizerBase, Dataset[dict[str, Tensor]]]:
    """The tokenizer and the data; the main process goes first, the others find its tokens kept."""
    made = []

    def make() -> None:
        corpus = open_corpus(recipe.data)
        tokenizer = load_tokenizer(recipe, corpus)
        made.append((tokenizer, training_data(recipe, corpus, tokenizer, tell)))

    from_main(make)
    if not made:
        make()
    return made[0]


def _save_result(trainer: RunTrainer) -> None:
    """The model in its final dtype, or the adapter; there is a `final` only when it is whole."""
    recipe = trainer.run.recipe
    if recipe.adapter is not None and recipe.adapter.merge:
        trainer.trained = trainer.trained.merge_and_unload()  # type: ignore[operator]
    if recipe.model.save_dtype is not None and not isinstance(trainer.trained, PeftModel):
        trainer.trained.to(getattr(torch, recipe.model.save_dtype))
    trainer.publish_model(trainer.run.result.name)
