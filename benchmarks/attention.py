"""One call of the attention function alone, on the shapes that the models give it."""

import math

import torch
from torch import Tensor, nn

from benchmarks.cells import HEADS, Cell
from benchmarks.models import HIDDEN, Step, plain_attention
from ropepatch.attention.biased import biased_attention
from ropepatch.attention.score_bias import AlibiBias, BucketBias
from ropepatch.methods.base import AlibiGeometry, RelativeGeometry


def attention_step(cell: Cell, length: int) -> tuple[Step, list[Tensor]]:
    """A call that returns (batch, tokens, hidden), and the tensors that it is differentiated by."""
    causal = cell.model == "bloom-attention"
    scale = 1 / math.sqrt(HIDDEN // HEADS) if causal else 1.0
    dtype = getattr(torch, cell.dtype)
    torch.manual_seed(0)
    shape = (1, length, HEADS, HIDDEN // HEADS)
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
    query, key, value = (leaf.transpose(1, 2) for leaf in leaves)  # as projections come
    if cell.variant == "limit":
        return lambda: plain_attention(query, key, value, is_causal=causal, scale=scale), leaves
    bias = (
        _alibi(length) if causal else _buckets(length, trained=cell.direction == "backward-table")
    )

    def step() -> Tensor:
        seen, _ = biased_attention(
            query,
            key,
            value,
            bias,
            mask=None,
            offset=0,
            causal=causal,
            scale=scale,
            dropout=0.0,
            kernel="toeplitz",
        )
        return seen.flatten(2)

    tables = list(bias.owner.parameters()) if isinstance(bias, BucketBias) else []
    return step, leaves + [table for table in tables if table.requires_grad]


def _alibi(length: int) -> AlibiBias:
    geometry = AlibiGeometry(num_heads=HEADS, original_max_position_embeddings=length)
    return AlibiBias(geometry, None)


def _buckets(length: int, *, trained: bool) -> BucketBias:
    geometry = RelativeGeometry(bidirectional=True, original_max_position_embeddings=length)
    owner = nn.Module()
    owner.relative_attention_bias = nn.Embedding(geometry.num_buckets, HEADS)
    return BucketBias(geometry, None, owner.requires_grad_(trained))
