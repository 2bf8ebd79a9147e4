"""What a recipe's `distributed` section means to accelerate, and what cannot be right under it.

Context parallelism and Ulysses give each device a part of every sequence. Masks are dropped there,
and a device sees neither all positions nor, under context parallelism, contiguous ones (torch deals
out head and tail in pairs). Rotary positions travel in `position_ids` and stay right.
"""

import importlib.util
from dataclasses import fields
from typing import Any

import torch
from accelerate import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ropepatch.adapters.pretrained import pretrained_model, text_config
from ropepatch.adapters.rope_parameters import rope_types
from ropepatch.errors import ConfigError
from ropepatch.methods.registry import method_class
from ropepatch.patch import mechanism_of, patch_info
from ropepatch.training.processes import COMMAND, processes
from ropepatch.training.sections import DistributedRecipe

_BY_LENGTH = ("dynamic", "longrope")  #: rope types that transformers scales by the largest position

# ZeRO 2 keeps parameters whole, so that adapters and models are saved as on one device.
_DEEPSPEED: dict[str, Any] = {
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
}


def replicas(recipe: DistributedRecipe) -> int:
    """Groups of processes with sequences of their own; within a group they share each sequence.

    One where there are too few processes to train: a preview shows what a group would get.
    """
    return max(int(processes().num_processes) // recipe.shared_by, 1)


def distributed_arguments(recipe: DistributedRecipe) -> dict[str, Any]:
    """The section in the words of TrainingArguments; for one device, nothing."""
    arguments: dict[str, Any] = {}
    if recipe.fsdp:
        arguments |= {"fsdp": True, "fsdp_config": {"version": 2}}
    if recipe.context_parallel > 1:
        sizes = {"cp_size": recipe.context_parallel, "dp_shard_size": replicas(recipe)}
        arguments["parallelism_config"] = ParallelismConfig(**sizes)
    if recipe.sequence_parallel > 1:
        arguments["deepspeed"] = _DEEPSPEED
        arguments["parallelism_config"] = ParallelismConfig(
            sp_size=recipe.sequence_parallel,
            sp_backend="deepspeed",
            sp_handler=DeepSpeedSequenceParallelConfig(sp_attn_implementation="sdpa"),
            dp_replicate_size=replicas(recipe),
        )
    return arguments


def refuse_devices(recipe: DistributedRecipe) -> None:
    """Raise ConfigError where the launch does not have what the section asks for."""
    asked = [each.name for each in fields(recipe) if getattr(recipe, each.name) != each.default]
    count, shared = processes().num_processes, recipe.shared_by
    wanted = f"distributed.{' and distributed.'.join(asked)}"
    if asked and count == 1:
        command = COMMAND.format(shared if shared > 1 else "N")
        raise ConfigError(f"{wanted} is for several processes; found 1; run {command}")
    if count % shared:
        raise ConfigError(
            f"{wanted} splits each sequence over {shared} processes, of which {count} are no whole "
            f"number of groups; run {COMMAND.format(shared)}, or a multiple"
        )
    if shared > 1 and not torch.cuda.is_available():
        raise ConfigError(
            f"{wanted} needs NVIDIA GPUs, and found none: torch has no attention over the parts of "
            "a sequence for other devices; leave it out"
        )
    if recipe.sequence_parallel > 1 and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"{wanted} needs DeepSpeed, which is not here; pip install deepspeed")


def refuse_parts(
    recipe: DistributedRecipe, model: nn.Module, data: Dataset[dict[str, Tensor]]
) -> None:
    """Raise ConfigError for a model or sequences that cannot be right in the parts that are asked for."""
    root = pretrained_model(model)
    if recipe.fsdp:
        _refuse_scattered_embedding(root)
    if recipe.shared_by == 1:
        return
    reason = _own_reason(recipe, root) or _method_reason(root) or _data_reason(data)
    if reason is not None:
        raise ConfigError(
            f"distributed.context_parallel and sequence_parallel give each device a part of every "
            f"sequence and drop masks, but {reason}; leave them out (distributed.fsdp is for all)"
        )


def _refuse_scattered_embedding(model: PreTrainedModel) -> None:
    """FSDP2 shards a tied weight with all modules that have it, of which accelerate knows two."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    known = {module for end in ends if end is not None for module in end.modules()}
    weight = ends[0].weight
    if any(
        weight is each and module not in known
        for module in model.modules()
        for each in module.parameters(recurse=False)
    ):
        raise ConfigError(
            f"distributed.fsdp cannot shard the embedding that the stacks of {model.config.model_type}"
            " share; leave it out, and every device trains a whole model"
        )


def _own_reason(recipe: DistributedRecipe, model: PreTrainedModel) -> str | None:
    """What the model itself needs that it would not get."""
    what = model.config.model_type
    if mechanism_of(model) != "rotary":
        return f"{what} keeps its positions in the mask, which would train without any"
    config = text_config(model)
    types = getattr(config, "layer_types", None)
    if types is None:  # models before layer types have one window for all layers, or none
        types = ["sliding"] if getattr(config, "sliding_window", None) else []
    if any(each != "full_attention" for each in types):
        return f"{what} has layers that see a window alone, and would train on full attention"
    # accelerate finds the layers whose masks it drops by this name, and no others.
    found = any(name.endswith("self_attn") for name, _ in model.named_modules())
    if recipe.context_parallel > 1 and not found:
        return f"accelerate does not find the attention of {what}, whose masks would stay"
    return None


def _method_reason(model: PreTrainedModel) -> str | None:
    """A scale that follows the length, which each device would take for another."""
    info = patch_info(model)
    if info is None:
        own = [kind for kind in rope_types(text_config(model)).values() if kind in _BY_LENGTH]
        name = f"the checkpoint's own {own[0]!r}" if own else None
    else:
        name = f"{info.method!r}" if method_class(info.method).length_dependent else None
    return None if name is None else f"{name} scales by the length, of which each sees its own"


def _data_reason(data: Dataset[dict[str, Tensor]]) -> str | None:
    sample = next(iter(data))
    own = [name for name in ("attention_mask", "position_ids") if name in sample]
    return f"the sequences of this recipe bring their {' and '.join(own)}" if own else None
