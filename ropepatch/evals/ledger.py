"""What was run, written down so that it can be run again: protocol, patch, versions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import transformers
from transformers import PreTrainedModel

from ropepatch import __version__
from ropepatch.errors import ConfigError
from ropepatch.evals.evaluation import Json
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.windows import Windows
from ropepatch.methods import make_method
from ropepatch.patch import patch_info
from ropepatch.precision import is_slow, slowness

Mode = Literal["forced_choice", "teacher_forced", "generate"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is measured. Two evaluations of one protocol on the same documents can be paired."""

    lengths: tuple[int, ...]  #: tokens in a window, ascending
    trained_length: int  #: tokens that the checkpoint was trained to
    targets: int  #: tokens at the end of each window that are scored at every length
    windows: int
    prompts: int  #: per task and length, 0 for none
    pairs: int  #: key–value pairs in a retrieval prompt
    bos: bool  #: whether windows and prompts start with BOS
    seed: int
    tasks: tuple[str, ...] = ("kv",)  #: or groups of them
    mode: Mode | None = None  #: of answers; None: a choice where there is one, else generated

    def __post_init__(self) -> None:
        if not self.lengths or tuple(sorted(set(self.lengths))) != self.lengths:
            raise ConfigError(f"lengths={self.lengths} must be distinct and ascending")
        if self.targets < 1 or self.lengths[0] <= self.targets:
            raise ConfigError(
                f"a window of {self.lengths[0]} tokens has no context left for "
                f"targets={self.targets}; use longer windows or fewer targets"
            )
        if self.windows < 1 or self.prompts < 0 or self.trained_length < 2:
            raise ConfigError(
                f"windows={self.windows}, prompts={self.prompts} and "
                f"trained_length={self.trained_length} must be at least 1, 0 and 2"
            )


def active_patch(model: PreTrainedModel) -> tuple[Json, bool]:
    """The patch on the model as JSON, and whether its frequencies depend on the length."""
    info = patch_info(model)
    if info is None:
        return None, False
    method = make_method(info.method, **info.options)
    patch: Json = {
        "method": info.method,
        "options": {name: _plain(value) for name, value in info.options.items()},
        "original_max_position_embeddings": info.original_max_position_embeddings,
        "max_position_embeddings": info.max_position_embeddings,
    }
    return patch, method.length_dependent


def _plain(value: object) -> Json:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def protocol_settings(protocol: Protocol, windows: Windows) -> dict[str, Json]:
    """The protocol, and the documents that its windows were cut from."""
    return {
        "lengths": list(protocol.lengths),
        "trained_length": protocol.trained_length,
        "targets": protocol.targets,
        "windows": len(windows.documents),
        "documents": list(windows.names),
        "documents_too_short": list(windows.too_short),
        "prompts": protocol.prompts,
        "pairs": protocol.pairs,
        "bos": protocol.bos,
        "seed": protocol.seed,
        "tasks": list(protocol.tasks),
        "mode": protocol.mode,
    }


def model_settings(model: PreTrainedModel) -> dict[str, Json]:
    """The parts of a model and of its surroundings that can change a number."""
    return {
        "model_type": str(model.config.model_type),
        "dtype": dtype_in_words(model),
        "device": model.device.type,
        "attention": str(getattr(model.config, "_attn_implementation", None)),
        "versions": {
            "ropepatch": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }


def dtype_in_words(model: PreTrainedModel) -> str:
    """Dtype of the weights, with the reason where it is not that of the checkpoint."""
    dtype = str(model.dtype).removeprefix("torch.")
    reason = reason_for_dtype(model)
    return dtype if reason is None else f"{dtype}, as {reason}"


def reason_for_dtype(model: PreTrainedModel) -> str | None:
    """Why the weights are not in the dtype of the checkpoint; None where they are."""
    stored = model.config.dtype
    if not isinstance(stored, torch.dtype) or stored == model.dtype:
        return None
    if not is_slow(stored, model.device):
        return None
    return f"the checkpoint is stored in a dtype that is slow here: {slowness(stored)}"


def real_lengths(
    lengths: Sequence[int], windows: Windows, prompts: Iterable[Prompt]
) -> dict[str, Json]:
    """Tokens of what the model is given, by the length asked for, and how much of it is shorter."""
    read = {
        length: [windows.suffix(length).shape[1]] * len(windows.documents) for length in lengths
    }
    for prompt in prompts:
        read[prompt.length].append(len(prompt.input_ids) + prompt.max_new_tokens)
    return {
        "real_lengths": {str(length): [*sorted(set(found))] for length, found in read.items()},
        "truncated": sum(n < length for length, found in read.items() for n in found),
    }
