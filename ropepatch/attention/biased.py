"""Attention with a bias by distance: which way of computing it fits the call."""

from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ropepatch.attention.call import Call
from ropepatch.attention.flex import flex_attention_by_distance
from ropepatch.attention.folded import folded_attention
from ropepatch.attention.score_bias import AlibiBias, ScoreBias
from ropepatch.attention.toeplitz import (
    query_blocks,
    reversed_distances,
    toeplitz_attention,
    toeplitz_view,
)

Kernel = Literal["auto", "folded", "toeplitz", "flex", "eager"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

_BLOCK = 64  # queries whose scores are made at a time: with some thousand keys they fit a cache


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: ScoreBias | None,
    *,
    mask: Tensor | None,
    offset: int | Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    kernel: Kernel,
    window: int | None = None,
    softcap: float | None = None,
    probabilities: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """softmax(q·k·scale + bias)·v, and the probabilities where they are computed anyway.

    (batch, heads, query, channels), (batch, heads or 1, key, channels) → (batch, query, heads, channels).
    `mask` is bool, True where a key may be seen: (batch, 1, 1, key) tells padding; (…, query, key) tells
    all, what is causal too. `offset` counts the keys before the first query. Keys `window` tokens away,
    and all beyond them, are not seen. Without `probabilities`, memory is linear whatever the mask tells.
    """
    # Under autocast what was turned is float32 by now, and the values are not.
    query, key = query.to(value.dtype), key.to(value.dtype)
    heads, queries = query.shape[1:3]
    dense = mask is not None and mask.shape[2] > 1
    causal = causal and not dense
    # What follows in a static cache is empty.
    keys = offset + queries if causal and isinstance(offset, int) else key.shape[2]
    key, value = (states[:, :, :keys].expand(-1, heads, -1, -1) for states in (key, value))
    mask = None if mask is None else mask[..., :keys]
    call = Call(query, key, value, mask, causal, scale, dropout, softcap)
    lengths = _lengths(mask, query, offset)
    if bias is not None:
        call = replace(call, curve=_curve(bias, call, lengths, offset, window))
    # Attention is float32 inside, whatever autocast would make of the bias.
    with torch.autocast(query.device.type, enabled=False):
        if queries == 1 or (dense and probabilities) or kernel == "eager":
            return _eager(call)
        if dense or softcap is not None:
            return _in_blocks(call), None
        if mask is not None and not torch.compiler.is_compiling() and bool(mask.all()):
            call = replace(call, mask=None)  # not asked while compiling: it would split the graph
        return _fused(call, bias, kernel, lengths, isinstance(offset, int)), None


def _curve(
    bias: ScoreBias, call: Call, lengths: Tensor, offset: int | Tensor, window: int | None
) -> Tensor:
    """The bias at every distance, −inf where keys are not seen. (1 or batch, heads, query + key − 1)"""
    distances = reversed_distances(call.query.shape[2], call.key.shape[2], offset, call.query)
    curve = bias.curve(distances, lengths)
    if call.causal:
        curve = curve.masked_fill(distances < 0, -torch.inf)
    if window is not None:
        curve = curve.masked_fill(distances.abs() >= window, -torch.inf)
    return curve


def _lengths(mask: Tensor | None, query: Tensor, offset: int | Tensor) -> Tensor:
    """Tokens in each row, cached ones included; of packed documents, the longest. (batch,)"""
    if mask is not None:
        return mask.sum(-1).amax((1, 2)).clamp(min=1).expand(query.shape[0])
    return torch.full((query.shape[0],), query.shape[2], device=query.device) + offset


def _fused(
    call: Call, bias: ScoreBias | None, kernel: Kernel, lengths: Tensor, offset_is_known: bool
) -> Tensor:
    """The kernel asked for or the fastest, or in blocks where that cannot do what the call needs."""
    query, key, value = call.query, call.key, call.value
    on_cpu = query.device.type == "cpu"
    if bias is None or call.curve is None:
        if call.dropout > 0 and on_cpu:
            return _in_blocks(call)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=call.mask, dropout_p=call.dropout, scale=call.scale
        ).transpose(1, 2)
    if kernel == "auto":
        by_table: Kernel = "toeplitz" if on_cpu else "flex"
        kernel = "folded" if isinstance(bias, AlibiBias) and not on_cpu else by_table
    # The gradient of a bias, and dropout, are beyond the kernels that read it.
    plain = not call.curve.requires_grad and call.dropout == 0
    if kernel == "toeplitz" and plain and on_cpu:
        return toeplitz_attention(call, call.curve)
    in_training = torch.is_grad_enabled() and query.requires_grad
    if kernel == "flex" and plain and (query.is_cuda or (on_cpu and not in_training)):
        return flex_attention_by_distance(call, call.curve)
    folds = offset_is_known and (plain or not on_cpu)
    if kernel == "folded" and isinstance(bias, AlibiBias) and folds:
        return folded_attention(call, bias.slopes(lengths))
    return _in_blocks(call)


def _eager(call: Call) -> tuple[Tensor, Tensor]:
    """The definition, its softmax in float32: (batch, query, heads, channels), (batch, heads, query, key)."""
    # Backwards, so that the bias is a view of the curve here, too.
    scores, scale = (call.query.flip(2) @ call.key.transpose(-1, -2)).float(), call.scale
    if call.softcap is not None:
        scores, scale = call.softcap * torch.tanh(scores * (scale / call.softcap)), 1.0
    if call.curve is None:
        scores = scores * scale
    else:
        bias = toeplitz_view(call.curve, call.query.shape[2], call.key.shape[2])
        scores = torch.add(bias, scores, alpha=scale)
    if call.mask is not None:
        scores = scores.masked_fill(~call.mask.flip(2), torch.finfo(torch.float32).min)
    probabilities = scores.softmax(-1).to(call.value.dtype)
    probabilities = F.dropout(probabilities, call.dropout, training=call.dropout > 0)
    return (probabilities @ call.value).transpose(1, 2).flip(1), probabilities.flip(2)


def _in_blocks(call: Call) -> Tensor:
    """The definition for a few queries at a time, done again in the backward pass: memory stays linear."""

    def block(queries: slice, keys: slice, place: int) -> Tensor:
        part = replace(
            call,
            query=call.query[:, :, queries],
            key=call.key[:, :, keys],
            value=call.value[:, :, keys],
            mask=_rows(call.mask, queries, keys),
            curve=None if call.curve is None else call.curve[..., place:],
        )
        return _eager(part)[0]

    places = query_blocks(call.query.shape[2], call.key.shape[2], _BLOCK, call.causal)
    blocks = [checkpoint(block, *place, use_reentrant=False) for place in places]
    return torch.cat(blocks[::-1], dim=1)


def _rows(mask: Tensor | None, queries: slice, keys: slice) -> Tensor | None:
    """The part of a mask that a block of queries needs."""
    if mask is None or mask.shape[2] == 1:
        return None if mask is None else mask[..., keys]
    return mask[:, :, queries, keys]
