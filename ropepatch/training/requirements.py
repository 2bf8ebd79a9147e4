"""What options of a recipe need of the machine, asked before anything is read or downloaded."""

import importlib.util

import torch
from transformers.utils import is_liger_kernel_available  # type: ignore[attr-defined]

from ropepatch.errors import ConfigError
from ropepatch.training.recipe import Recipe


def require_machine(recipe: Recipe) -> None:
    """Raise ConfigError for options that cannot work here."""
    if recipe.training.offload_activations and not torch.accelerator.is_available():
        raise ConfigError(
            "training.offload_activations moves activations from an accelerator to the memory of the "
            "host; there is no accelerator here, so they are there already; leave it out"
        )
    if recipe.training.liger:
        _require_cuda("training.liger")
        if not is_liger_kernel_available():
            raise ConfigError("training.liger needs Liger kernels; pip install liger-kernel")
    if recipe.model.quantization is not None:
        _require_cuda(f"model.quantization: {recipe.model.quantization}")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"model.quantization: {recipe.model.quantization} needs bitsandbytes; "
                "pip install bitsandbytes"
            )


def require_liger_kernels(model_type: str) -> None:
    """Raise ConfigError for a type of model that Liger would leave as it is, without a word."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(
            f"training.liger: there are no Liger kernels for {model_type}, only for "
            f"{', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}; leave it out"
        )


def _require_cuda(option: str) -> None:
    if not torch.cuda.is_available():
        raise ConfigError(f"{option} needs an NVIDIA GPU, and there is none here; leave it out")
