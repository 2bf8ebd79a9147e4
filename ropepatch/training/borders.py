"""Whether a model keeps packed documents apart: asked of its config, its patch, and itself."""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ropepatch.errors import ConfigError
from ropepatch.methods.registry import method_class
from ropepatch.training.packing import Packing
from ropepatch.training.recipe import Recipe
from ropepatch.training.sections import PatchRecipe

_PIECE = 6  #: tokens of each of the two documents that the model is tried with
_NOTHING = 1e-3  #: of what a token does within its document; a masked one does 0 or rounding
_WINDOWS = ("sliding_window", "attention_chunk_size")


def check_borders(model: PreTrainedModel, recipe: Recipe, packing: Packing) -> None:
    """Raise ConfigError where packed documents would see each other, or other scales than alone."""
    if recipe.patch is not None:
        _check_method(recipe.patch)
    if packing.borders == "mask":
        _check_windows(model, max(recipe.lengths))
    elif "position_ids" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"packing.borders: positions is for models that take position_ids; "
            f"{type(model).__name__} counts its tokens itself; {_other(packing)}"
        )
    if model.device.type == "meta":  # of a dry run: there is nothing to try
        return
    try:
        across, within = _effects(model, packing, recipe.training.per_device_batch_size)
    except Exception as error:  # of any kind: a stock model that cannot take the mask
        raise ConfigError(
            f"packing.borders: {packing.borders} is not for {type(model).__name__}, which fails on "
            f"it ({error}); {_other(packing)}"
        ) from error
    if not across <= _NOTHING * within:
        raise ConfigError(
            f"packing.borders: {packing.borders} does not keep documents apart in "
            f"{type(model).__name__} with {model.config._attn_implementation} attention: another "
            f"token moves logits of the next document by {across:.1e}, of its own by {within:.1e}; "
            f"{_other(packing)}"
        )


def _check_method(patch: PatchRecipe) -> None:
    fixed = patch.options.get("training_length") is not None
    if method_class(patch.method).length_dependent and not fixed:
        raise ConfigError(
            f"patch.method {patch.method!r} scales by the tokens in a row, in which packing puts "
            "several documents; set patch.options.training_length, or choose another method"
        )


def _check_windows(model: PreTrainedModel, length: int) -> None:
    """A mask that is given takes the place of those that sliding and chunked layers make."""
    config = model.config.get_text_config()
    for name in _WINDOWS:
        window = getattr(config, name, None)
        if window is not None and window < length:
            raise ConfigError(
                f"packing.borders: mask would let layers with {name} {window} see all {length} "
                "tokens; use borders: positions"
            )


@torch.no_grad()
def _effects(model: PreTrainedModel, packing: Packing, batch: int) -> tuple[float, float]:
    """How much a token moves the logits of the next document, and those of its own."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    ids = (torch.arange(2 * _PIECE) + vocabulary // 2) % vocabulary
    columns = {
        name: torch.from_numpy(values).expand(batch, *values.shape).to(model.device)
        for name, values in packing.columns((0, _PIECE), 2 * _PIECE).items()
    }

    def answers(changed: int | None) -> Tensor:
        tokens = ids.clone()
        if changed is not None:
            tokens[changed] = ids[0] - 1
        tokens = tokens.expand(batch, -1).to(model.device)
        logits: Tensor = model(input_ids=tokens, use_cache=False, **columns).logits
        return logits[:, _PIECE + 1 :].float()

    was_training = model.training
    model.eval()
    base, before, inside = answers(None), answers(1), answers(_PIECE)
    model.train(was_training)
    return float((before - base).abs().max()), float((inside - base).abs().max())


def _other(packing: Packing) -> str:
    other = "mask" if packing.borders == "positions" else "positions"
    return (
        f"use borders: {other} (models with score biases need a patch for the mask; with factor: 1 "
        "it changes no number), or leave packing out"
    )
