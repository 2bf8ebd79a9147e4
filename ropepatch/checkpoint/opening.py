"""Checkpoints by directory or Hub name: models with their patch, and tokenizers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ropepatch.adapters.pretrained import decoder_config, in_fast_dtype, language_model_class
from ropepatch.checkpoint.downloads import again, broke_off, require_hub
from ropepatch.checkpoint.load import load_model, load_pretrained
from ropepatch.checkpoint.sidecar import ADAPTER_CONFIG
from ropepatch.checkpoint.weightless import weightless_model
from ropepatch.errors import CheckpointError, RopepatchError
from ropepatch.manifest import CONFIG_KEY

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_model(
    source: str, dtype: torch.dtype | Literal["auto"] = "auto", **loading: Any
) -> nn.Module:
    """The model, patched if it was saved patched; with its base if it is an adapter.

    Other keywords go to transformers' `from_pretrained`.
    """
    with _readable(source):
        if is_adapter(source) or _names_patch(source):
            return load_pretrained(source, dtype=dtype, **loading)
        auto_class = language_model_class(AutoConfig.from_pretrained(source))
        model: nn.Module = auto_class.from_pretrained(source, dtype=dtype, **loading)
        return model


def open_to_measure(source: str) -> nn.Module:
    """Open a model as `open_model` does, in float32 where the CPU is slow in the checkpoint's dtype."""
    return in_fast_dtype(open_model(source))


def open_weightless(source: str, dtype: torch.dtype) -> PreTrainedModel:
    """What `open_model` returns of a full model, without weights, which need not be there."""
    with _readable(source):
        if _names_patch(source):
            return load_model(Path(source), {}, lambda config: weightless_model(config, dtype))
        return weightless_model(AutoConfig.from_pretrained(source), dtype)


def open_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with a checkpoint."""
    with _readable(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
        return tokenizer


def is_adapter(source: str) -> bool:
    """Whether a directory holds an adapter."""
    return Path(source, ADAPTER_CONFIG).is_file()


def _names_patch(source: str) -> bool:
    return hasattr(decoder_config(AutoConfig.from_pretrained(source)), CONFIG_KEY)


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """One CheckpointError for the many that transformers and safetensors raise."""
    local = Path(source).exists()
    if not local and not _HUB_NAME.fullmatch(source):
        raise CheckpointError(f"there is no checkpoint at {source}; check the path")
    if local and not Path(source).is_dir():
        raise CheckpointError(f"{source} is a file; give the directory of a checkpoint")
    if local and not (Path(source, "config.json").is_file() or is_adapter(source)):
        raise CheckpointError(f"{source} has no config.json; give the directory of a checkpoint")
    try:
        if not local:
            require_hub(source)
        yield
    except RopepatchError:
        raise
    except Exception as error:  # transports of the Hub have errors of no common class
        reason = str(error).strip().partition("\n")[0]
        if not local and broke_off(error):
            raise CheckpointError(f"{source} is no directory here, and {again(reason)}") from error
        if not isinstance(error, OSError | ValueError | KeyError | SafetensorError):
            raise
        where = "cannot be loaded" if local else "is no directory here, and not on the Hub"
        raise CheckpointError(f"{source} {where}: {reason}") from error
