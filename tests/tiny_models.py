"""Tiny randomly initialised models, one for every architecture of the contract."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from model_copies import copier
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TRAINED_LENGTH = 32

_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_TWO_TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}

# What each architecture needs beyond the common sizes.
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"num_experts": 4, "head_dim": 16, **_EXPERTS},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, **_TWO_TYPES},
    "gemma3_text": {"head_dim": 16, **_TWO_TYPES},
    "phi": {},
    "phi3": {},
    "gpt_neox": {},
    "stablelm": {},
    "olmo2": {},
    "olmo3": {**_TWO_TYPES},
    "starcoder2": {},
    "granite": {"attention_multiplier": 0.25},  # as 1/√16; its default leaves scores unscaled
    "cohere": {},
    "glm4": {"head_dim": 16},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 2},
    "nemotron": {},
    "helium": {"head_dim": 16},
}
KINDS = list(SPECIAL)
EAGER_ONLY = ("gemma2",)  # stock transformers has no SDPA for its soft-capped scores
SLIDING_KINDS = ("gemma3_text", "olmo3")  # rotary frequencies differ by layer type


def tiny_config(kind: str, **changes: Any) -> Any:
    """A config of a few thousand parameters."""
    return AutoConfig.for_model(kind, **{**_COMMON, **SPECIAL.get(kind, {}), **changes})


def tiny_model(
    kind: str, *, attention: str | None = None, seed: int = 0, config: Any = None, **changes: Any
) -> PreTrainedModel:
    """The model of `tiny_config`, or of a `config` given, in evaluation mode, the same for the same seed.

    Weights are larger than at usual initialisation, so that positions matter to the logits.
    """
    config = tiny_config(kind, **changes) if config is None else config
    attention = attention or ("eager" if kind in EAGER_ONLY else "sdpa")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            elif "bias" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


@functools.cache
def _copier(kind: str, attention: str | None) -> Callable[[], PreTrainedModel]:
    return copier(tiny_model(kind, attention=attention))


def fresh_model(kind: str, *, attention: str | None = None) -> PreTrainedModel:
    """The same as `tiny_model(kind)`, faster: a copy of one that is built once."""
    return _copier(kind, attention)()


def token_ids(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Random tokens without the special ones. (batch, length)"""
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """What the model answers. (batch, length, vocabulary)"""
    return model(input_ids=ids, **arguments).logits
