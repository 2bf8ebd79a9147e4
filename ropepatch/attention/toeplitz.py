"""A bias by distance as a strided view of its curve, for the CPU's fused attention.

With the queries in reverse order, the bias of query i and key j is curve[i + j]: a matrix whose
rows are the same memory, shifted by one. The fused kernel reads such a view without copying it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ropepatch.attention.call import Call

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


class _View(torch.autograd.Function):
    """The view below; its gradient is summed along diagonals, which autograd would do element by element."""

    @staticmethod
    def forward(ctx: Any, curve: Tensor, queries: int, keys: int) -> Tensor:
        ctx.length = curve.shape[-1]
        rows, heads, _ = curve.stride()
        size = (*curve.shape[:2], queries, keys)
        return curve.as_strided(size, (rows, heads, 1, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        queries, keys = gradient.shape[-2:]
        # In rows one element shorter, row i slides by i places, and diagonals become columns.
        width = keys + queries - 1
        slid = F.pad(gradient, (0, queries)).flatten(-2)[..., : queries * width]
        columns = slid.unflatten(-1, (queries, width)).sum(-2)
        return F.pad(columns, (0, ctx.length - width)), None, None


def toeplitz_view(curve: Tensor, queries: int, keys: int) -> Tensor:
    """The bias of reversed queries, with no memory of its own. (rows, heads, n) → (…, queries, keys)"""
    view: Tensor = _View.apply(curve, queries, keys)  # type: ignore[no-untyped-call]
    return view


def query_blocks(
    queries: int, keys: int, step: int, causal: bool
) -> Iterator[tuple[slice, slice, int]]:
    """Blocks of queries from the last to the first, the keys that each can see, its place in the curve."""
    for end in range(queries, 0, -step):
        start = max(end - step, 0)
        yield slice(start, end), slice(0, keys - queries + end if causal else keys), queries - end


class _Attention(torch.autograd.Function):
    """Block by block through the CPU's flash kernel, written into one output and one set of gradients.

    The kernel is called by its own name: left to autograd, every block would pad its gradients of keys
    and values to full length and add them up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        curve: Tensor,
        causal: bool,
        scale: float,
    ) -> Tensor:
        rows, heads, queries, channels = query.shape
        out = query.new_empty(rows, queries, heads, channels)
        log_sums = query.new_empty(rows, heads, queries, dtype=_wide(query))
        step = _step(queries, 32 if query.dtype.itemsize >= 4 else 16)
        for block, keys, place in query_blocks(queries, key.shape[2], step, causal):
            bias = toeplitz_view(curve[..., place:], block.stop - block.start, keys.stop)
            seen, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, block].flip(2),
                key[:, :, keys],
                value[:, :, keys],
                attn_mask=bias,
                scale=scale,
            )
            out[:, block] = seen.transpose(1, 2).flip(1)
            log_sums[:, :, block] = log_sum.flip(2)
        ctx.save_for_backward(query, key, value, curve, out, log_sums)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, curve, out, log_sums = ctx.saved_tensors
        (gradient,) = gradients
        queries, keys = query.shape[2], key.shape[2]
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        if query.dtype.itemsize >= 4:
            row_step, key_step = _step(queries, 4), _step(keys, 16)
        else:
            row_step, key_step = _step(queries, 4, least=1024), _step(keys, 8, least=512)
        # Here keys are in reverse, a block of them at a time, and queries in pieces: the kernel
        # returns the gradients of all it is given in new memory.
        mirrored = curve.flip(-1)
        unseen = keys - queries  # keys before the first query
        for rows in _slices(0, queries, row_step):
            total = torch.zeros_like(query[:, :, rows], dtype=_wide(query))
            last = unseen + rows.stop if ctx.causal else keys
            for some in _slices(0, last, key_step):
                first = max(some.start - unseen, rows.start) if ctx.causal else rows.start
                seeing = slice(first, rows.stop)
                made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    gradient[:, seeing].transpose(1, 2),
                    query[:, :, seeing],
                    key[:, :, some].flip(2),
                    value[:, :, some].flip(2),
                    out[:, seeing].transpose(1, 2),
                    log_sums[:, :, seeing],
                    0.0,
                    False,
                    attn_mask=toeplitz_view(
                        mirrored[..., keys - some.stop + first :],
                        rows.stop - first,
                        some.stop - some.start,
                    ),
                    scale=ctx.scale,
                )
                total[:, :, first - rows.start :] += made[0]
                of_key[:, :, some] += made[1].flip(2)
                of_value[:, :, some] += made[2].flip(2)
                del made  # or it lives beside its successor
            of_query[:, :, rows] = total
        return of_query, of_key, of_value, None, None, None


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """From `start` to `stop` in steps, the last one as long as what is left."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _step(tokens: int, blocks: int, least: int = 256) -> int:
    """Tokens in a block: multiples of 256, by which the kernel splits, and not below `least`.

    In half precision the kernel packs what it is given for every call, so blocks are larger.
    """
    return max(least, 256 * -(-tokens // (blocks * 256)))


def _wide(states: Tensor) -> torch.dtype:
    """What sums over blocks are kept in: at least float32."""
    return torch.promote_types(states.dtype, torch.float32)


def toeplitz_attention(call: Call, curve: Tensor) -> Tensor:
    """softmax(q·k·scale + bias)·v in memory linear in the length. → (batch, query, heads, channels)

    Equals attention over the dense bias; `curve` (1 or batch, heads, query + key − 1) belongs to
    `reversed_distances`, with −inf where keys lie in the future.
    """
    query, key, value = call.query, call.key, call.value
    if call.key_mask is not None:
        # One more channel adds MASKED to the scores of padded keys, so that the bias need not.
        ones = torch.ones(1, 1, 1, device=query.device)
        query = widened(query, ones / call.scale)
        key = widened(key, (~call.key_mask)[:, None] * MASKED)
        value = F.pad(value, (0, CHANNELS))
    if query.dtype == torch.float64:
        curve = curve.double()
    out: Tensor = _Attention.apply(query, key, value, curve, call.causal, call.scale)  # type: ignore[no-untyped-call]
    return out[..., : call.value.shape[-1]]


def widened(states: Tensor, *channels: Tensor) -> Tensor:
    """`states` with CHANNELS more channels: those given, each broadcast to (batch, heads, n), and zeros."""
    more = [channel.expand(states.shape[:-1]).to(states.dtype) for channel in channels]
    more += [torch.zeros_like(more[0])] * (CHANNELS - len(more))
    return torch.cat((states, torch.stack(more, -1)), -1)
