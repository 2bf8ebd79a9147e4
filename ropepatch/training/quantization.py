"""A frozen base in 4 bits, below a LoRA adapter (QLoRA, arXiv 2305.14314). Needs CUDA and bitsandbytes."""

from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ropepatch.adapters.pretrained import pretrained_model
from ropepatch.training.sections import ModelRecipe

# 4 bits; a scale of 8 bits for every 64 weights, and one of 32 for every 256 of these (§3).
_BYTES = 4 / 8 + 1 / 64 + 4 / (64 * 256)


def loading_options(recipe: ModelRecipe) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told; computation is in the recipe's dtype."""
    if recipe.quantization is None:
        return {}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=recipe.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, recipe.dtype),
        ),
        # Weights are quantised where they will be used; the Trainer does not move them.
        "device_map": {"": torch.cuda.current_device()},
    }


def prepare_quantized(model: PreTrainedModel) -> None:
    """Freeze the model and bring all that is not quantised to float32, in place."""
    if model.device.type != "meta":
        # The Trainer switches checkpointing on where a recipe wants it.
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        return
    quantized = quantized_weights(model)  # peft would not know them without their values
    for parameter in model.parameters():
        if parameter not in quantized:
            parameter.data = parameter.data.float()


def quantized_weights(model: nn.Module) -> set[Tensor]:
    """What bitsandbytes keeps in 4 bits: weights of linear layers, but for the head's and an adapter's."""
    head = pretrained_model(model).get_output_embeddings()
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    }


def bytes_saved(model: nn.Module) -> int:
    """By which the weights of a model are fewer in 4 bits than in the dtype that they have here."""
    weights = quantized_weights(model)
    return sum(weight.nbytes - round(weight.numel() * _BYTES) for weight in weights)
