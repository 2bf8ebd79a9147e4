"""Run a recipe: model, patch, adapter, data and the Trainer, put together."""

import dataclasses
import inspect
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from ropepatch.adapters.pretrained import LENGTH_ATTRIBUTES, language_model_class
from ropepatch.corpus import (
    Document,
    RetrievalVocabulary,
    encode,
    load_documents,
    train_tokenizer,
)
from ropepatch.errors import CheckpointError, ConfigError, DataError
from ropepatch.methods.registry import method_class
from ropepatch.patch import patch_model
from ropepatch.terminal import quiet_transformers
from ropepatch.training.induction import add_induction_circuit
from ropepatch.training.interrupts import InterruptCallback
from ropepatch.training.lm_loss import use_chunked_loss
from ropepatch.training.lora import add_lora
from ropepatch.training.mistakes import unknown_key
from ropepatch.training.mixture import TrainingMixture
from ropepatch.training.pretrained import open_model, open_tokenizer
from ropepatch.training.progress import (
    MetricsCallback,
    ProgressCallback,
    ProgressSink,
    forget_metrics_after,
)
from ropepatch.training.recipe import ModelRecipe, Recipe, TokenizerRecipe
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.skipped_positions import WithSkippedPositions
from ropepatch.training.trainer import RunTrainer, training_arguments

_LONGEST_REASON = 300  #: characters of an error of transformers, which may list all its models


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
        trainer = prepare(recipe, run, progress, [*callbacks, interrupts])
        checkpoint = run.last_good_checkpoint()
        with _explained(run), interrupts.listening():
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
) -> RunTrainer:
    """The Trainer of a recipe, ready to start; raises for everything that can be wrong before."""
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    set_seed(recipe.training.seed)
    documents = load_documents(recipe.data.source, recipe.data.split)
    tokenizer = _load_tokenizer(recipe, documents)
    model = _load_model(recipe, tokenizer)
    trainer = RunTrainer(
        model=model,
        args=training_arguments(recipe.training, recipe.output_dir),
        train_dataset=_training_data(recipe, documents, tokenizer),
        tokenizer=tokenizer,
        callbacks=[MetricsCallback(run.metrics), *callbacks],
        run=run,
        embedding_learning_rate=recipe.training.embedding_learning_rate,
    )
    trainer.remove_callback(PrinterCallback)
    if progress is not None:
        trainer.add_callback(ProgressCallback(progress, _tokens_per_step(recipe)))
    return trainer


def _tokens_per_step(recipe: Recipe) -> int:
    """Tokens in one optimizer step, on one device."""
    return _sequences_per_step(recipe) * recipe.data.length


def _sequences_per_step(recipe: Recipe) -> int:
    """Sequences in one optimizer step, on one device."""
    return recipe.training.per_device_batch_size * recipe.training.gradient_accumulation


def _training_data(
    recipe: Recipe, documents: list[Document], tokenizer: PreTrainedTokenizerBase
) -> Dataset[dict[str, Tensor]]:
    """As many sequences as the run takes, in the order in which it takes them."""
    shares = recipe.data.mixture
    vocabulary = (
        RetrievalVocabulary.from_tokenizer(tokenizer)
        if shares.need_keys
        else RetrievalVocabulary(keys=(), values=())
    )
    mixture = TrainingMixture(
        encode(documents, tokenizer),
        vocabulary,
        len(tokenizer),
        length=recipe.data.length,
        samples=recipe.training.max_steps * _sequences_per_step(recipe),
        seed=recipe.data.seed,
        shares=shares,
        target_length=recipe.data.target_length,
    )
    positions = recipe.data.positions
    if positions is None:
        return mixture
    return WithSkippedPositions(
        mixture, positions.kind, positions.target, positions.chunks, recipe.data.seed
    )


def _load_tokenizer(recipe: Recipe, documents: list[Document]) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, or one trained on the documents."""
    if recipe.model.path is not None:
        return open_tokenizer(recipe.model.path)
    options = recipe.model.tokenizer or TokenizerRecipe()
    return train_tokenizer(
        documents, model_max_length=recipe.data.length, **dataclasses.asdict(options)
    )


def _load_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | PeftModel:
    """The model of the recipe with its patch and adapter, trainable."""
    model = _base_model(recipe.model, tokenizer)
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if len(tokenizer) > rows:
        raise DataError(
            f"the tokenizer does not fit the model: it has {len(tokenizer)} tokens, but the model "
            f"has embeddings for {rows}; use the tokenizer that the model was trained with"
        )
    _check_target_length(recipe, model.config)
    if recipe.data.positions is not None:
        _check_positions(model, recipe)
    if recipe.patch is not None:
        patch = recipe.patch
        patch_model(
            model,
            method=patch.method,
            factor=patch.factor,
            original_max_position_embeddings=patch.original_max_position_embeddings,
            part=patch.part,
            **patch.options,
        )
    if recipe.training.chunked_loss:
        use_chunked_loss(model)
    return model if recipe.lora is None else add_lora(model, recipe.lora)


def _check_target_length(recipe: Recipe, config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder and recipe.data.target_length is None:
        raise ConfigError(
            f"{config.model_type} is an encoder–decoder model; set data.target_length, the last "
            "tokens of each sequence, which the decoder predicts"
        )
    if not config.is_encoder_decoder and recipe.data.target_length is not None:
        raise ConfigError(
            f"data.target_length is for encoder–decoder models; {config.model_type} has no encoder"
        )


def _check_positions(model: PreTrainedModel, recipe: Recipe) -> None:
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"data.positions is for models that take position_ids; {type(model).__name__} counts "
            "its tokens itself; leave it out and train at the full length"
        )
    if recipe.patch is not None and method_class(recipe.patch.method).length_dependent:
        raise ConfigError(
            f"patch.method {recipe.patch.method!r} scales by the tokens in a row, of which "
            "data.positions leaves most out; choose a method that scales all lengths alike"
        )


def _base_model(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    dtype = getattr(torch, recipe.dtype)
    if recipe.path is None:
        new = _new_model(dict(recipe.config or {}), tokenizer, dtype)
        if recipe.induction_circuit:
            add_induction_circuit(new)
        return new
    # Without a dtype, transformers keeps the one that the checkpoint was saved in.
    model = open_model(recipe.path, dtype)
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"model.path {recipe.path} is an adapter; merge it into its base, and give that"
        )
    return model


def _new_model(
    fields: dict[str, object], tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> PreTrainedModel:
    model_type = str(fields.pop("model_type", "llama"))
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    fields = {"vocab_size": len(tokenizer)} | fields
    tokens = {name: getattr(tokenizer, name) for name in special}
    try:
        config = AutoConfig.for_model(model_type, **fields | tokens)
        _refuse_unknown(fields, config)
        if config.is_encoder_decoder:  # as T5 was trained; its config has no default
            config.decoder_start_token_id = config.pad_token_id
        auto_class = language_model_class(config)
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    except Exception as error:  # of any kind: what a config is checked by differs between models
        reason = textwrap.shorten(str(error), _LONGEST_REASON)
        raise ConfigError(f"model.config is no {model_type} model: {reason}") from error
    return model


def _refuse_unknown(fields: dict[str, object], config: PreTrainedConfig) -> None:
    """A config keeps fields that it does not know, so a misspelt one would go unseen."""
    known = [*(field.name for field in dataclasses.fields(config)), *LENGTH_ATTRIBUTES]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ValueError("; ".join(unknown_key(name, known) for name in unknown))


def _save_result(trainer: RunTrainer, recipe: Recipe, run: RunDirectory) -> None:
    """The model in its final dtype, or the adapter; there is a `final` only when it is whole."""
    if recipe.model.save_dtype is not None and recipe.lora is None:
        trainer.trained.to(getattr(torch, recipe.model.save_dtype))
    trainer.publish_model(run.result.name)


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.partition("-")[2]) if checkpoint else 0
