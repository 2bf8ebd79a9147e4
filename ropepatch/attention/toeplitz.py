"""A bias by distance as a strided view of its curve, for the CPU's fused attention.

With the queries in reverse order, the bias of query i and key j is curve[i + j]: a matrix whose
rows are the same memory, shifted by one. The fused kernel reads such a view without copying it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -3e4  # the score of a padded key: exp() of it is 0, and float16 can hold it
CHANNELS = 8  # by which heads are widened: fused kernels want aligned widths


def reversed_distances(
    query_length: int, key_length: int, offset: int | Tensor, like: Tensor
) -> Tensor:
    """Distance query − key at every place of a curve: query offset + query_length − 1 − i, key j, at i + j.

    (query_length + key_length − 1,), on the device of `like`.
    """
    places = torch.arange(query_length + key_length - 1, device=like.device)
    return offset + query_length - 1 - places


class _Matrix(torch.autograd.Function):
    """The dense bias of a few reversed queries; its gradient is summed along diagonals."""

    @staticmethod
    def forward(ctx: Any, curve: Tensor, queries: int, keys: int) -> Tensor:
        ctx.length = curve.shape[-1]
        return toeplitz_view(curve, queries, keys).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        queries, keys = gradient.shape[-2:]
        # A view with rows one element shorter slides row i by i places: diagonals become columns.
        width = keys + queries
        padded = F.pad(gradient, (0, queries)).flatten(-2)[..., : queries * (width - 1)]
        columns = padded.unflatten(-1, (queries, width - 1)).sum(-2)
        return F.pad(columns, (0, ctx.length - columns.shape[-1])), None, None


def toeplitz_view(curve: Tensor, queries: int, keys: int) -> Tensor:
    """The bias of reversed queries, with no memory of its own. (rows, heads, n) → (…, queries, keys)"""
    rows, heads, _ = curve.stride()
    size = (*curve.shape[:2], queries, keys)
    return curve.as_strided(size, (rows, heads, 1, 1), curve.storage_offset())


def toeplitz_matrix(curve: Tensor, queries: int, keys: int) -> Tensor:
    """The same as a matrix, in the order of the queries, differentiable."""
    matrix: Tensor = _Matrix.apply(curve, queries, keys)  # type: ignore[no-untyped-call]
    return matrix.flip(-2)


def query_blocks(queries: int, keys: int, causal: bool) -> Iterator[tuple[slice, slice, int]]:
    """Blocks of queries from the last to the first, the keys that each can see, its place in the curve."""
    # Multiples of 256 queries, by which the CPU's kernel splits, and at most 16 blocks: what they
    # compute of keys that they cannot see is then 3 % of all pairs.
    step = 256 * max(1, -(-queries // (16 * 256)))
    for end in range(queries, 0, -step):
        start = max(end - step, 0)
        yield slice(start, end), slice(0, keys - queries + end if causal else keys), queries - end


def toeplitz_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    curve: Tensor,
    *,
    key_mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """softmax(q·k·scale + bias)·v in memory linear in the length. → (batch, query, heads, channels)

    Equals attention over the dense bias; `curve` (1 or batch, heads, query + key − 1) belongs to
    `reversed_distances`, with −inf where keys lie in the future. `key_mask` (batch, key): False is padding.
    """
    channels = value.shape[-1]
    if key_mask is not None:
        query, key, value = _with_padding_channel(query, key, value, key_mask, scale)
    blocks = []
    for queries, keys, place in query_blocks(query.shape[2], key.shape[2], causal):
        block = query[:, :, queries].flip(2)
        bias = toeplitz_view(curve[..., place:], block.shape[2], keys.stop)
        seen = F.scaled_dot_product_attention(
            block, key[:, :, keys], value[:, :, keys], attn_mask=bias, scale=scale
        )
        blocks.append(seen[..., :channels].transpose(1, 2).flip(1))
    return torch.cat(blocks[::-1], dim=1)


def _with_padding_channel(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One more channel that adds MASKED to the scores of padded keys, so that the bias need not."""
    penalty = (~key_mask)[:, None] * MASKED
    ones = torch.ones(1, 1, 1, device=query.device)
    return widened(query, ones / scale), widened(key, penalty), F.pad(value, (0, CHANNELS))


def widened(states: Tensor, *channels: Tensor) -> Tensor:
    """`states` with CHANNELS more channels: those given, each broadcast to (batch, heads, n), and zeros."""
    more = [channel.expand(states.shape[:-1]).to(states.dtype) for channel in channels]
    more += [torch.zeros_like(more[0])] * (CHANNELS - len(more))
    return torch.cat((states, torch.stack(more, -1)), -1)
