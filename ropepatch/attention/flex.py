"""A bias by distance as a score function that FlexAttention compiles into a fused kernel."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ropepatch.attention.call import Call
from ropepatch.attention.toeplitz import MASKED


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Compiled at the first call: seconds on a GPU, half a minute on a CPU."""
    return torch.compile(flex_attention, dynamic=False)


def flex_attention_by_distance(call: Call, curve: Tensor) -> Tensor:
    """softmax(q·k·scale + bias)·v without a bias matrix. → (batch, query, heads, channels)

    `curve` as in `toeplitz_attention`; causality is −inf in it.
    """
    query, key_mask = call.query, call.key_mask
    last = query.shape[2] - 1
    rows = torch.arange(query.shape[0], device=query.device).clamp(max=curve.shape[0] - 1)

    def score(scores: Tensor, row: Tensor, head: Tensor, at: Tensor, to: Tensor) -> Tensor:
        biased = scores + curve[rows[row], head, last - at + to]
        return biased if key_mask is None else torch.where(key_mask[row, to], biased, MASKED)

    out: Tensor = _compiled()(query, call.key, call.value, score_mod=score, scale=call.scale)
    return out.transpose(1, 2)
