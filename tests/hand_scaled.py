"""Stock models whose biases are scaled by hand, from the formulas: the reference for factor 4."""

import types
from collections.abc import Callable
from typing import Any

import torch
from tiny_bias_models import ALIBI_KINDS, TRAINED_LENGTH, fresh_bias_model
from torch import Tensor
from transformers.models.falcon import modeling_falcon
from transformers.models.t5.modeling_t5 import T5Attention

FACTOR = 4


def press_slopes(heads: int) -> Tensor:
    """ALiBi's slopes as its paper's code makes them (arXiv 2108.12409, §3)."""
    power = 1
    while 2 * power <= heads:
        power *= 2
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)][: heads - power]
    return torch.tensor(slopes, dtype=torch.float64)


def scaled_slopes(method: str, heads: int, lengths: Tensor) -> Tensor:
    """Slopes of every row. (rows,) → (rows or 1, heads)"""
    slopes = press_slopes(heads)
    if method == "linear":
        return slopes[None] / FACTOR
    if method == "dynamic_linear":
        return slopes * TRAINED_LENGTH / lengths[:, None].clamp(min=TRAINED_LENGTH)
    assert method == "ntk"
    steepness = slopes.log()
    share = (steepness.max() - steepness) / (steepness.max() - steepness.min())
    return slopes[None] * FACTOR**-share


def scaled_buckets(method: str, relative_position: Tensor, decoder: bool) -> Tensor:
    """T5's own bucket of a distance that is divided, or of one on a longer scale."""
    reach = 128 * FACTOR if method == "log" else 128
    if method == "linear":
        distance = -(-relative_position.abs() // FACTOR)
        relative_position = relative_position.sign() * distance
    return T5Attention._relative_position_bucket(relative_position, not decoder, 32, reach)


def _bloom(method: str) -> Callable[..., Tensor]:
    def build_alibi_tensor(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        positions = (mask.cumsum(-1) - 1) * mask
        slopes = scaled_slopes(method, heads, mask.sum(-1))
        biases = slopes[..., None] * positions[:, None]
        return biases.reshape(-1, 1, mask.shape[1]).to(dtype)

    return build_alibi_tensor


def _mpt(method: str, length: int) -> Callable[..., Tensor]:
    def build_mpt_alibi_tensor(heads: int, keys: int, *rest: Any, **more: Any) -> Tensor:
        slopes = scaled_slopes(method, heads, torch.tensor([length]))[0]
        return (slopes[:, None, None] * torch.arange(1 - keys, 1)).float()

    return build_mpt_alibi_tensor


def _t5(method: str) -> Callable[..., Tensor]:
    def compute_bias(
        self: Any, queries: int, keys: int, device: Any = None, past_seen_tokens: Any = 0
    ) -> Tensor:
        context = torch.arange(queries)[:, None] + past_seen_tokens
        buckets = scaled_buckets(method, torch.arange(keys) - context, self.is_decoder)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)[None]

    return compute_bias


def hand_scaled(kind: str, method: str, length: int, monkeypatch: Any) -> Any:
    """The weights of `fresh_bias_model(kind)` in stock code that adds a scaled bias.

    BLOOM needs an explicit mask to be asked for its bias; Falcon's is a function of its module.
    """
    model = fresh_bias_model(kind, attention="eager" if kind not in ALIBI_KINDS else None)
    if kind == "bloom":
        model.transformer.build_alibi_tensor = _bloom(method)
    elif kind == "mpt":
        model.config.max_seq_len = length
        model.transformer.build_mpt_alibi_tensor = _mpt(method, length)
    elif kind.startswith("falcon"):
        model.config._attn_implementation = "sdpa"  # its eager code adds the bias twice
        monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", _bloom(method))
    else:
        for module in model.modules():
            if getattr(module, "has_relative_attention_bias", False):
                module.compute_bias = types.MethodType(_t5(method), module)
    return model
