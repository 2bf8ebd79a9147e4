"""Attention with a bias by distance: which way of computing it fits the call."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
_BLOCK = 64  # queries whose scores are made at a time: with some thousand keys they fit a cache

KERNELS: tuple[Kernel, ...] = get_args(Kernel)


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
) -> tuple[Tensor, Tensor | None]:
    """softmax(q·k·scale + bias)·v, and the probabilities where they are computed anyway.

    (batch, heads, query, channels), (batch, heads or 1, key, channels) → (batch, query, heads, channels).
    `mask` is bool, True where a key may be seen: (batch, 1, 1, key) tells padding; (…, query, key) tells
    all, what is causal too. `offset` counts the keys before the first query.
    """
    queries, heads = query.shape[2], query.shape[1]
    dense = mask is not None and mask.shape[2] > 1
    causal = causal and not dense
    if causal and isinstance(offset, int):  # what follows in a static cache is empty
        key, value = key[:, :, : offset + queries], value[:, :, : offset + queries]
    key, value = key.expand(-1, heads, -1, -1), value.expand(-1, heads, -1, -1)
    mask = None if mask is None else mask[..., : key.shape[2]]
    curve = None
    if bias is not None:
        distances = reversed_distances(queries, key.shape[2], offset, query)
        curve = bias.curve(distances, _lengths(mask, query, offset))
        if causal:
            curve = curve.masked_fill(distances < 0, -torch.inf)
    # Attention is float32 inside, whatever autocast would make of the bias.
    with torch.autocast(query.device.type, enabled=False):
        if queries == 1 or dense or kernel == "eager":
            return _eager(query, key, value, curve, mask, scale, dropout)
        mask = None if mask is None or _is_full(mask) else mask
        way = _way(kernel, bias, curve, query, dropout, offset)
        if way == "blocks":
            return _in_blocks(query, key, value, curve, mask, causal, scale, dropout), None
        if curve is None or bias is None:
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale
            )
            return out.transpose(1, 2), None
        key_mask = None if mask is None else mask[:, 0, 0]
        if way == "toeplitz":
            return toeplitz_attention(
                query, key, value, curve, key_mask=key_mask, causal=causal, scale=scale
            ), None
        if way == "flex":
            return flex_attention_by_distance(
                query, key, value, curve, key_mask=key_mask, scale=scale
            ), None
        assert isinstance(bias, AlibiBias)
        slopes = bias.slopes(_lengths(mask, query, offset))
        return folded_attention(
            query,
            key,
            value,
            slopes,
            key_mask=key_mask,
            causal=causal,
            scale=scale,
            dropout=dropout,
        ), None


def _lengths(mask: Tensor | None, query: Tensor, offset: int | Tensor) -> Tensor:
    """Tokens in each row, cached ones included; of packed documents, the longest. (batch,)"""
    if mask is not None:
        return mask.sum(-1).amax((1, 2)).clamp(min=1).expand(query.shape[0])
    return (
        torch.zeros(query.shape[0], dtype=torch.long, device=query.device) + offset + query.shape[2]
    )


def _is_full(mask: Tensor) -> bool:
    """Whether nothing is masked; not asked while compiling, where the answer would split the graph."""
    return not torch.compiler.is_compiling() and bool(mask.all())


def _way(
    kernel: Kernel,
    bias: ScoreBias | None,
    curve: Tensor | None,
    query: Tensor,
    dropout: float,
    offset: int | Tensor,
) -> str:
    """The kernel asked for, or "blocks" where that cannot do what the call needs."""
    on_cpu = query.device.type == "cpu"
    if bias is None or curve is None:
        return "blocks" if dropout and on_cpu else "plain"
    if kernel == "auto":
        fused = "flex" if query.is_cuda else "blocks"
        kernel_here = "toeplitz" if on_cpu else "folded" if isinstance(bias, AlibiBias) else fused
    else:
        kernel_here = kernel
    # CPU kernels have no dropout; no kernel gives the gradient of a bias; flex has none at all on a CPU.
    in_training = torch.is_grad_enabled() and query.requires_grad
    cannot = (
        curve.requires_grad
        or (dropout > 0 and (on_cpu or kernel_here != "folded"))
        or (kernel_here == "flex" and on_cpu and in_training)
        or (kernel_here == "folded" and not isinstance(offset, int))
    )
    return "blocks" if cannot else kernel_here


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    curve: Tensor | None,
    mask: Tensor | None,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The definition, its softmax in float32: (batch, query, heads, channels), (batch, heads, query, key)."""
    # Backwards, so that the bias is a view of the curve here, too.
    scores = (query.flip(2) @ key.transpose(-1, -2)).float()
    if curve is not None:
        bias = toeplitz_view(curve, query.shape[2], key.shape[2])
        scores = torch.add(bias, scores, alpha=scale)
    else:
        scores = scores * scale
    if mask is not None:
        scores = scores.masked_fill(~mask.flip(2), torch.finfo(torch.float32).min)
    probabilities = F.dropout(scores.softmax(-1).to(value.dtype), p=dropout, training=dropout > 0)
    return (probabilities @ value).transpose(1, 2).flip(1), probabilities.flip(2)


def _in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    curve: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> Tensor:
    """The definition for a few queries at a time, done again in the backward pass: memory stays linear."""

    def block(queries: slice, keys: slice, place: int) -> Tensor:
        along = None if curve is None else curve[..., place:]
        seen = None if mask is None else mask[..., keys]
        rows = query[:, :, queries]
        return _eager(rows, key[:, :, keys], value[:, :, keys], along, seen, scale, dropout)[0]

    blocks = [
        checkpoint(block, *where, use_reentrant=False)
        for where in query_blocks(query.shape[2], key.shape[2], _BLOCK, causal)
    ]
    return torch.cat(blocks[::-1], dim=1)
