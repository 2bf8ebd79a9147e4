"""The tokenizer and the model of a recipe: opened or made, patched, and with their adapter."""

import dataclasses
import inspect
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ropepatch.adapters.pretrained import (
    LENGTH_ATTRIBUTES,
    language_model_class,
    trained_length,
)
from ropepatch.checkpoint.opening import (
    is_adapter,
    open_model,
    open_tokenizer,
    open_weightless,
)
from ropepatch.checkpoint.weightless import weightless_model
from ropepatch.corpus import Document, train_tokenizer
from ropepatch.corpus.fitting import fitting_text
from ropepatch.description import length_to_fit
from ropepatch.errors import ConfigError, DataError, RopepatchWarning
from ropepatch.methods.registry import counts_tokens, method_class
from ropepatch.patch import patch_info, patch_model
from ropepatch.training.borders import check_borders
from ropepatch.training.induction import add_induction_circuit
from ropepatch.training.lm_loss import use_chunked_loss
from ropepatch.training.lora import add_lora
from ropepatch.training.mistakes import unknown_keys
from ropepatch.training.quantization import loading_options, prepare_quantized
from ropepatch.training.recipe import Recipe
from ropepatch.training.requirements import require_liger_kernels
from ropepatch.training.sections import ModelRecipe, PatchRecipe, TokenizerRecipe
from ropepatch.training.sequences import open_corpus
from ropepatch.training.sparse_attention import use_sparse_attention

_LONGEST_REASON = 300  #: characters of an error of transformers, which may list all its models


def load_tokenizer(recipe: Recipe, documents: Iterable[Document]) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, or one trained on the documents."""
    if recipe.model.path is not None:
        return open_tokenizer(recipe.model.path)
    options = recipe.model.tokenizer or TokenizerRecipe()
    return train_tokenizer(
        documents, model_max_length=recipe.data.length, **dataclasses.asdict(options)
    )


def load_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, weights: bool = True
) -> PreTrainedModel | PeftModel:
    """The model of the recipe with its patch and adapter, trainable; without weights on the meta device."""
    model = base_model(recipe.model, tokenizer, weights=weights)
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    if len(tokenizer) > rows:
        raise DataError(
            f"the tokenizer does not fit the model: it has {len(tokenizer)} tokens, but the model "
            f"has embeddings for {rows}; use the tokenizer that the model was trained with"
        )
    _check_target_length(recipe, model.config)
    if recipe.data.positions is not None:
        _check_positions(model, recipe)
    shifted = recipe.training.shifted_attention
    if shifted is not None:  # before the patch, whose layers look at values that a dry run has not
        use_sparse_attention(model, shifted.group, shift=shifted.shift)
    if recipe.patch is not None:
        # Also without weights, as text may be too short for it.
        fit = fit_arguments(recipe, model, tokenizer)
        _patch_for_lengths(recipe, model, recipe.patch, fit if weights else {})
    elif recipe.model.path is not None and (own := trained_length(model)) is not None:
        _tell_of_missing_patch(recipe, own)
    if recipe.training.chunked_loss:
        use_chunked_loss(model)
    if recipe.data.packing is not None:
        check_borders(model, recipe, recipe.data.packing)
    if recipe.training.liger:
        require_liger_kernels(model.config.model_type)
    if recipe.model.quantization is not None:
        prepare_quantized(model)
    return model if recipe.adapter is None else add_lora(model, recipe.adapter)


def check_lengths(recipe: Recipe) -> None:
    """Raise what `load_model` would of a checkpoint's patch, without its weights, before text is read."""
    if recipe.model.path is not None and recipe.patch is not None:
        model = _checkpoint(recipe.model, recipe.model.path, weights=False)
        _patch_for_lengths(recipe, model, recipe.patch)


def _patch_for_lengths(
    recipe: Recipe, model: PreTrainedModel, patch: PatchRecipe, fit: Mapping[str, Any] | None = None
) -> None:
    """Patch the model in place. Raises ConfigError for a patch that is not for the recipe's lengths."""
    own = trained_length(model)
    patch_model(model, **patch_arguments(patch), **(fit or {}))
    _check_lengths(recipe, model, own)


def apply_patch(model: nn.Module, recipe: PatchRecipe) -> None:
    """Patch the model in place."""
    patch_model(model, **patch_arguments(recipe))


def patch_arguments(recipe: PatchRecipe) -> dict[str, Any]:
    """What `patch_model` and `patched` are told."""
    return {
        "method": recipe.method,
        "factor": recipe.factor,
        "original_max_position_embeddings": recipe.original_max_position_embeddings,
        "part": recipe.part,
        "replace": recipe.replace,
        **recipe.options,
    }


def fit_arguments(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """`fit` of `patch_model` and its text, where the recipe asks for it. Raises DataError for short text."""
    patch = recipe.patch
    if patch is None or patch.fit is None:
        return {}
    own = patch.original_max_position_embeddings or length_to_fit(model) or recipe.data.length
    return {"fit": patch.fit, "text": fitting_text(open_corpus(recipe.data), tokenizer, own)}


def _tell_of_missing_patch(recipe: Recipe, own: int) -> None:
    longest = max(map(recipe.tokens_read, recipe.all_stages))
    if longest > own:
        warnings.warn(
            f"the recipe trains {longest} tokens on a checkpoint for {own}, and has no patch: its "
            "positions stay as they are; to scale them, give patch",
            RopepatchWarning,
            stacklevel=3,
        )


def _check_lengths(recipe: Recipe, model: PreTrainedModel, own: int | None) -> None:
    """Raise ConfigError for a target below `own`, what the checkpoint read, or below what is trained."""
    info = patch_info(model)
    assert info is not None
    original = info.original_max_position_embeddings
    for stage in recipe.all_stages:
        patch = recipe.patch_of(stage)
        assert patch is not None
        target = round(patch.factor * original)
        if own is not None and target < own:
            raise ConfigError(
                f"patch.factor {patch.factor:g} over {original} tokens gives {target}, fewer than the "
                f"{own} that the checkpoint reads already; set "
                f"patch.original_max_position_embeddings to {own}, or a larger factor"
            )
        trained = recipe.tokens_read(stage)
        if trained > target:
            raise ConfigError(
                f"the recipe trains {trained} tokens, but patch.factor {patch.factor:g} over "
                f"{original} is for {target}; use at most {target} tokens, or a factor of "
                f"{math.ceil(trained / original)}"
            )


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
    if recipe.patch is not None and counts_tokens(recipe.patch.method):
        raise ConfigError(
            f"patch.method {recipe.patch.method!r} goes by the distance in tokens, which "
            "data.positions does not change; leave data.positions out and train at the full length"
        )
    if recipe.patch is not None and method_class(recipe.patch.method).length_dependent:
        raise ConfigError(
            f"patch.method {recipe.patch.method!r} scales by the tokens in a row, of which "
            "data.positions leaves most out; choose a method that scales all lengths alike"
        )


def base_model(
    recipe: ModelRecipe, tokenizer: PreTrainedTokenizerBase, *, weights: bool = True
) -> PreTrainedModel:
    """The checkpoint as it is, or a new model of random weights."""
    if recipe.path is not None:
        return _checkpoint(recipe, recipe.path, weights=weights)
    build = _random_model if weights else weightless_model
    dtype = getattr(torch, recipe.dtype)
    new = _new_model(dict(recipe.config or {}), tokenizer, dtype, build)
    if recipe.induction_circuit:
        add_induction_circuit(new)
    return new


def _checkpoint(recipe: ModelRecipe, path: str, *, weights: bool) -> PreTrainedModel:
    if is_adapter(path):
        raise ConfigError(f"model.path {path} is an adapter; merge it into its base, and give that")
    dtype = getattr(torch, recipe.dtype)
    if not weights:
        return open_weightless(path, dtype)
    # Without a dtype, transformers keeps the one that the checkpoint was saved in.
    return cast(PreTrainedModel, open_model(path, dtype, **loading_options(recipe)))


def _random_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = language_model_class(config).from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model


def _new_model(
    fields: dict[str, object],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    build: Callable[[PreTrainedConfig, torch.dtype], PreTrainedModel],
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
        return build(config, dtype)
    except Exception as error:  # of any kind: what a config is checked by differs between models
        reason = textwrap.shorten(str(error), _LONGEST_REASON)
        raise ConfigError(f"model.config is no {model_type} model: {reason}") from error


def _refuse_unknown(fields: dict[str, object], config: PreTrainedConfig) -> None:
    """A config keeps fields that it does not know, so a misspelt one would go unseen."""
    known = [*(field.name for field in dataclasses.fields(config)), *LENGTH_ATTRIBUTES]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ValueError("; ".join(unknown_keys(unknown, known)))
