"""Saving patched models and adapters, so that no patch is ever lost without a word.

A full checkpoint says all in its config: `rope_parameters` that plain transformers understands (or, for
length-dependent methods, refuses), and the manifest beside them. An adapter gets a sidecar.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ropepatch.adapters.pretrained import pretrained_model, trained_length
from ropepatch.checkpoint.sidecar import SIDECAR, write_sidecar
from ropepatch.errors import CheckpointError
from ropepatch.patch import patch_info
from ropepatch.placed_parameters import PLACED, save_placed
from ropepatch.verification import require_intact
from ropepatch.whole_files import replaced_directory

# What tells which model a directory holds, or is one; all of it goes when another is saved there.
FULL_MODEL = ("config.json", "generation_config.json", "model*.safetensors*", "pytorch_model*")
ADAPTER = ("adapter_*", SIDECAR, PLACED)


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """Save a model or PEFT adapter with its patch, and return the directory. Atomic.

    A static patch is written so that plain transformers gives the same logits; a length-dependent one so that
    plain transformers refuses it. The tokenizer's `model_max_length` follows the new length. `state_dict` has
    the whole weights of a model that itself has a part of them, as under FSDP. Raises PatchVerificationError
    when the patch is not live, CheckpointError when the directory cannot be written; what was there before is
    then still whole.
    """
    root = pretrained_model(model)
    if patch_info(model) is not None:
        require_intact(model)
    is_adapter = hasattr(model, "peft_config")
    require_same_kind(Path(directory), is_adapter)
    with replaced_directory(Path(directory), instead_of=(*FULL_MODEL, *ADAPTER)) as written:
        if is_adapter:
            save_adapter(model, written, state_dict)
        else:
            root.save_pretrained(written, state_dict=state_dict)
        if tokenizer is not None:
            save_tokenizer(tokenizer, written, trained_length(root))
    return Path(directory)


def require_same_kind(directory: Path, is_adapter: bool) -> None:
    """Raise CheckpointError when an adapter would take the place of a full model, or the reverse."""
    there = FULL_MODEL if is_adapter else ADAPTER
    if directory.is_dir() and any(any(directory.glob(pattern)) for pattern in there):
        kinds = ("a full model", "an adapter") if is_adapter else ("an adapter", "a full model")
        raise CheckpointError(
            f"{directory} holds {kinds[0]}, which {kinds[1]} saved there would replace; save to another"
            " directory"
        )


def save_adapter(model: Any, directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """A PEFT adapter with its sidecar. A local base is named by its full path, to be found from anywhere."""
    configs = list(model.peft_config.values())
    names = [config.base_model_name_or_path for config in configs]
    for config, name in zip(configs, names, strict=True):
        if name and Path(name).is_dir():
            config.base_model_name_or_path = str(Path(name).resolve())
    try:
        model.save_pretrained(directory, state_dict=state_dict)
    finally:
        for config, name in zip(configs, names, strict=True):
            config.base_model_name_or_path = name
    write_sidecar(model, directory)
    save_placed(pretrained_model(model), directory)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path, length: int | None) -> None:
    """Save a tokenizer that says how long its model's input may be, and leave the object as it is."""
    before = tokenizer.model_max_length
    tokenizer.model_max_length = before if length is None else length
    try:
        tokenizer.save_pretrained(directory)
    finally:
        tokenizer.model_max_length = before
