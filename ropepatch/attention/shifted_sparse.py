"""Shifted sparse attention, S² (LongLoRA, arXiv 2309.12307, §3.2): causal, within groups of tokens."""

import torch
from torch import Tensor
from torch.nn import functional as F


def shifted_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: int,
    *,
    shift: bool = True,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention within groups, whose borders lie half a group further in the second half of heads.

    query (batch, heads, length, head_dim), key and value likewise, or with heads that divide those
    of query; (batch, heads, length, head_dim). `group` is even and divides length, or exceeds it.
    The published code rolls the sequence, and its last group joins the end to the start: there the
    first tokens see the last ones. Here what lies at the two edges are half groups of their own.
    """
    heads, length = query.shape[1:3]
    per_key = heads // key.shape[1]
    states = (query, key.repeat_interleave(per_key, 1), value.repeat_interleave(per_key, 1))
    if length <= group:
        return _attend(*states, scale=scale, dropout=dropout)

    def within(borders: slice, tokens: list[slice], size: int) -> Tensor:
        """Attention of some heads within groups of `size`, over pieces of the sequence."""
        pieces = (torch.cat([each[:, borders, piece] for piece in tokens], 2) for each in states)
        grouped = (each.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1) for each in pieces)
        attended = _attend(*grouped, scale=scale, dropout=dropout)
        restored: Tensor = attended.unflatten(0, (query.shape[0], -1)).transpose(1, 2).flatten(2, 3)
        return restored

    whole = slice(None)
    if not shift:
        return within(whole, [whole], group)
    half = group // 2
    first, second = slice(heads // 2), slice(heads // 2, heads)
    start, middle, end = slice(half), slice(half, length - half), slice(length - half, length)
    edges = within(second, [start, end], half)
    inner = within(second, [middle], group)
    shifted = torch.cat([edges[:, :, :half], inner, edges[:, :, half:]], 2)
    return torch.cat([within(first, [whole], group), shifted], 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float
) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scale
    )
