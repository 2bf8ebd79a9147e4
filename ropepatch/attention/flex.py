"""A bias by distance as a score function that FlexAttention compiles into a fused kernel."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ropepatch.attention.call import Call
from ropepatch.attention.toeplitz import MASKED

_LENGTHS = 256  # kernels that one process may compile; torch's own limit is 8


@functools.cache
def _compiled(on_cpu: bool) -> Callable[..., Any]:
    """Compiled at the first call: seconds on a GPU, half a minute on a CPU, there for every length.

    Beyond the limit it raises; without `fullgraph` it would make the matrix, with a warning.
    """
    return torch.compile(flex_attention, dynamic=False if on_cpu else None, fullgraph=True)


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

    if torch.compiler.is_compiling():
        out = flex_attention(query, call.key, call.value, score_mod=score, scale=call.scale)
    else:
        with torch._dynamo.config.patch(recompile_limit=_LENGTHS):
            kernel = _compiled(query.device.type == "cpu")
            out = kernel(query, call.key, call.value, score_mod=score, scale=call.scale)
    assert isinstance(out, Tensor)
    return out.transpose(1, 2)
