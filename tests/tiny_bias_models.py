"""Tiny models whose positions are score biases: ALiBi and T5's tables."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from model_copies import copier
from tiny_models import token_ids
from torch import Tensor
from transformers import PreTrainedModel

TRAINED_LENGTH = 32

_SPECIAL = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_FALCON = {
    "hidden_size": 64,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 2,
    # Stock rounds Falcon's slopes to bfloat16, which only those of a power of two heads survive.
    "num_attention_heads": 8,
    "max_position_embeddings": TRAINED_LENGTH,
    "alibi": True,
}
_T5 = {
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 6,
    "n_positions": TRAINED_LENGTH,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"hidden_size": 48, "n_layer": 2, "n_head": 6, "seq_length": 32}),
    "mpt": ("Mpt", {"d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 32}),
    "falcon": ("Falcon", _FALCON),
    "falcon_many_keys": ("Falcon", _FALCON | {"multi_query": False}),
    "falcon_grouped": ("Falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "t5": ("T5", _T5),
    "mt5": ("MT5", _T5 | {"num_heads": 4}),
    "umt5": ("UMT5", _T5),
}
KINDS = list(SIZES)
RELATIVE_KINDS = ["t5", "mt5", "umt5"]
ALIBI_KINDS = [kind for kind in KINDS if kind not in RELATIVE_KINDS]
ONE_EACH = [
    "bloom",
    "mpt",
    "falcon",
    "t5",
    "umt5",
]  # where what differs between the rest cannot matter


def bias_config(kind: str, **changes: Any) -> Any:
    """A config of a few thousand parameters, trained to 32 tokens."""
    family, sizes = SIZES[kind]
    return getattr(transformers, f"{family}Config")(**{**_SPECIAL, **sizes, **changes})


def bias_model(
    kind: str, *, attention: str | None = None, head: str | None = None, **changes: Any
) -> PreTrainedModel:
    """A model in evaluation mode, the same each time; large weights and tables make positions matter."""
    family = SIZES[kind][0]
    head = head or ("ForConditionalGeneration" if kind in RELATIVE_KINDS else "ForCausalLM")
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, family + head)(
        bias_config(kind, **changes)
    ).eval()
    if attention is not None:
        model.set_attn_implementation(attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_()
            elif parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return model


@functools.cache
def _copier(kind: str, attention: str | None) -> Callable[[], PreTrainedModel]:
    return copier(bias_model(kind, attention=attention))


def fresh_bias_model(kind: str, *, attention: str | None = None) -> PreTrainedModel:
    """The same as `bias_model(kind)`, faster: a copy of one that is built once."""
    return _copier(kind, attention)()


def inputs(model: Any, ids: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
    """Arguments of a forward call; encoder–decoder models read the same tokens on both sides."""
    arguments = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder and hasattr(model, "decoder"):
        arguments |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    return arguments


@torch.no_grad()
def answers(model: Any, ids: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
    """Logits, or hidden states of a model without a head. (batch, length, …)"""
    more = {"use_cache": False, **more}
    return model(**inputs(model, ids, mask), **more)[0]


def padded(length: int, padding: str, *, pads: int = 5) -> tuple[Tensor, Tensor | None]:
    """Two rows of tokens, the second one padded on the left, the right or not at all, and their mask."""
    ids = token_ids(2, length)
    if padding == "none":
        return ids, None
    mask = torch.ones_like(ids)
    mask[1, slice(0, pads) if padding == "left" else slice(length - pads, None)] = 0
    return ids, mask


def real(values: Tensor, mask: Tensor | None) -> Tensor:
    """What belongs to tokens that are no padding. (batch, length, …) → (tokens, …)"""
    return values.flatten(0, 1) if mask is None else values[mask.bool()]


def assert_near(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    """Every number within `tolerance`, relative to the largest of the reference."""
    error = (ours.double() - reference.double()).abs().max() / reference.double().abs().max()
    assert error <= tolerance, f"off by {error:.1e}"
