"""The transformers model inside wrappers, its text decoder, and the configs that describe it."""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ropepatch.errors import UnsupportedModelError
from ropepatch.precision import is_slow

_MAJOR = int(importlib.metadata.version("transformers").split(".")[0])
if _MAJOR < 5:
    raise ImportError(
        f"ropepatch needs transformers 5, found {importlib.metadata.version('transformers')}; pip "
        "install 'transformers>=5,<6'"
    )

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

# Where configs say how many tokens a checkpoint was trained to; the first that a config has counts.
# BLOOM's and T5's say it in fields that their classes do not declare.
LENGTH_ATTRIBUTES = ("max_position_embeddings", "max_seq_len", "seq_length", "n_positions")


def pretrained_model(model: nn.Module) -> PreTrainedModel:
    """The outermost transformers model inside PEFT, DDP or torch.compile wrappers.

    Raises UnsupportedModelError when there is none.
    """
    if isinstance(model, nn.Module):
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                return module
    raise UnsupportedModelError(
        f"{type(model).__name__} holds no transformers model; pass what from_pretrained returned"
    )


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The config of the text decoder: the model's own, or the nested one of a multimodal model."""
    return decoder_config(model.config)


def decoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config that describes the text decoder, itself and not a copy."""
    # For T5 and its like, transformers answers with a copy, whose changes nobody would see.
    return config if config.is_encoder_decoder else config.get_text_config(decoder=True)


def language_model_class(
    config: PreTrainedConfig,
) -> type[AutoModelForCausalLM] | type[AutoModelForSeq2SeqLM]:
    """The class of transformers that makes a language model of a config."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def length_attribute(config: PreTrainedConfig) -> str | None:
    """Where a config says how many tokens its model is for, if it does."""
    held = (name for name in LENGTH_ATTRIBUTES if type(getattr(config, name, None)) is int)
    return next(held, None)


def trained_length(model: PreTrainedModel) -> int | None:
    """Tokens that a model is for, by its config, patched or not; None where that does not say."""
    config = text_config(model)
    attribute = length_attribute(config)
    return None if attribute is None else int(getattr(config, attribute))


def text_configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every config object in `model` that describes the text decoder, each once.

    Multimodal models copy the nested config into the language model, so there can be two.
    """
    kind = type(text_config(model))
    found: dict[int, PreTrainedConfig] = {id(text_config(model)): text_config(model)}
    for module in model.modules():
        config = getattr(module, "config", None)
        if type(config) is kind:
            found[id(config)] = config
    return list(found.values())


def text_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Modules of the text decoder by name: those whose nearest transformers model has the text config.

    Vision and audio towers are transformers models with configs of their own, and stay out.
    """
    kind = type(text_config(model))
    owners: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():  # parents come first
        parent = name.rpartition(".")[0]
        owners[name] = module if isinstance(module, PreTrainedModel) else owners[parent]
    return {
        name: model.get_submodule(name)
        for name, owner in owners.items()
        if type(owner.config) is kind
    }


def is_causal(module: nn.Module, config: object) -> bool:
    """Whether a module hides the future. Masks go by the config, by which a decoder may be an encoder."""
    told = getattr(config, "is_causal", None)  # None says nothing
    return bool(getattr(module, "is_causal", True)) and told is not False


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout within the body; every module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def in_fast_dtype(model: nn.Module) -> nn.Module:
    """Convert weights to float32, in place, where their 16-bit format is slow on their CPU.

    The config keeps the dtype that the checkpoint is stored in.
    """
    return model.float() if any(map(_is_slow, model.parameters())) else model


@contextmanager
def fast_weights(model: nn.Module) -> Iterator[None]:
    """Float32 copies of 16-bit weights in the body, where their CPU is slow in 16 bits.

    Afterwards every weight is the tensor that it was. The copies take twice the memory of the weights.
    """
    slow = [tensor for tensor in (*model.parameters(), *model.buffers()) if _is_slow(tensor)]
    before = [tensor.data for tensor in slow]
    try:
        for tensor in slow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(slow, before, strict=True):
            tensor.data = data


def _is_slow(tensor: Tensor) -> bool:
    return is_slow(tensor.dtype, tensor.device)
