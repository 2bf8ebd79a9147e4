"""A bias by distance as a score function that FlexAttention compiles into a fused kernel."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

_MASKED = -3e4  # finite, so that a row of padding gives numbers


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Compiled at the first call: seconds on a GPU, half a minute on a CPU."""
    return torch.compile(flex_attention, dynamic=False)


def flex_attention_by_distance(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    curve: Tensor,
    *,
    key_mask: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax(q·k·scale + bias)·v without a bias matrix. → (batch, query, heads, channels)

    `curve` and `key_mask` as in `toeplitz_attention`; causality is −inf in the curve.
    """
    last = query.shape[2] - 1
    rows = torch.arange(query.shape[0], device=query.device).clamp(max=curve.shape[0] - 1)

    def score(scores: Tensor, row: Tensor, head: Tensor, at: Tensor, to: Tensor) -> Tensor:
        biased = scores + curve[rows[row], head, last - at + to]
        return biased if key_mask is None else torch.where(key_mask[row, to], biased, _MASKED)

    out: Tensor = _compiled()(query, key, value, score_mod=score, scale=scale)
    return out.transpose(1, 2)
