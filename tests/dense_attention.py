"""Attention with a score bias by its definition, dense and in float64, and inputs to try it on."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from hand_scaled import press_slopes
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from ropepatch.attention.biased import biased_attention
from ropepatch.attention.score_bias import AlibiBias, BucketBias
from ropepatch.methods.base import AlibiGeometry, Method, RelativeGeometry

SCALE = 0.2
TRAINED_LENGTH = 32
RARE = 1e-12  # dropout that never drops, in the one way of computing that can


@dataclass
class Case:
    """One call: what goes in, as float32, and what bias is added."""

    bias: str  # "alibi", "table" or "none"
    query: Tensor  # (batch, heads, queries, channels)
    key: Tensor
    value: Tensor
    causal: bool
    mask: Tensor | None = None  # (batch, keys)
    owner: Any = None  # of the table
    past: int = 0
    method: Method | None = None

    def cast(self, dtype: torch.dtype) -> "Case":
        """The same in another precision; its values are rounded once."""
        parts = {name: getattr(self, name).detach().to(dtype) for name in ("query", "key", "value")}
        return replace(self, **parts)

    def distances(self) -> Tensor:
        """Distance query − key. (queries, keys)"""
        queries = torch.arange(self.query.shape[2]) + self.past
        return queries[:, None] - torch.arange(self.key.shape[2])

    def seen(self) -> Tensor:
        """Which key every query sees. (batch, 1, queries, keys)"""
        rows, keys = self.query.shape[0], self.key.shape[2]
        mask = torch.ones(rows, keys, dtype=torch.bool) if self.mask is None else self.mask
        past = self.distances() >= 0 if self.causal else torch.ones_like(self.distances()).bool()
        return mask[:, None, None] & past


def make_case(
    bias: str,
    queries: int,
    *,
    past: int = 0,
    heads: int = 6,
    key_heads: int | None = None,
    causal: bool = True,
    padding: bool = False,
    channels: int = 16,
    method: Method | None = None,
) -> Case:
    """Random inputs; with padding, one row has none, one has it on the left, one on the right."""
    generator = torch.Generator().manual_seed(queries + past)
    rows = 3 if padding else 1
    keys = queries + past
    shapes = [
        (rows, n, m, channels) for n, m in ((heads, queries), *[(key_heads or heads, keys)] * 2)
    ]
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    mask = None
    if padding:
        mask = torch.ones(3, keys, dtype=torch.bool)
        mask[1, : keys // 3] = False
        mask[2, keys - keys // 5 :] = False
    owner = nn.Module()  # T5's first attention module, of which only the table matters
    owner.relative_attention_bias = nn.Embedding(32, heads)
    owner.relative_attention_bias.weight.data.normal_(generator=generator)
    owner.requires_grad_(False)
    return Case(bias, query, key, value, causal, mask, owner, past, method)


def bias_of(case: Case) -> AlibiBias | BucketBias | None:
    """The bias as ropepatch has it."""
    length = {"original_max_position_embeddings": TRAINED_LENGTH}
    if case.bias == "alibi":
        return AlibiBias(AlibiGeometry(num_heads=case.query.shape[1], **length), case.method)
    if case.bias == "table":
        geometry = RelativeGeometry(bidirectional=not case.causal, **length)
        return BucketBias(geometry, case.method, case.owner)
    return None


def ours(case: Case, kernel: str, *, dropout: float = 0.0) -> Tensor:
    """(batch, queries, heads, channels), by ropepatch; "blocks" is what dropout needs."""
    rare = {"kernel": "auto", "dropout": RARE} if kernel == "blocks" else {"kernel": kernel}
    more: dict[str, Any] = {"dropout": dropout, **rare}
    return biased_attention(
        case.query,
        case.key,
        case.value,
        bias_of(case),
        mask=None if case.mask is None else case.mask[:, None, None],
        offset=case.past,
        causal=case.causal,
        scale=SCALE,
        **more,
    )[0]


def dense(case: Case, slopes: Tensor | None = None) -> Tensor:
    """The same by the definition, in float64; `slopes` (batch, heads) in the place of ALiBi's own."""
    query, key, value = case.query.double(), case.key.double(), case.value.double()
    scores = query @ key.mT * SCALE
    if case.bias == "alibi":
        slopes = press_slopes(query.shape[1])[None] if slopes is None else slopes
        scores = scores - slopes[..., None, None] * case.distances()
    if case.bias == "table":
        buckets = T5Attention._relative_position_bucket(-case.distances(), not case.causal, 32, 128)
        scores = scores + case.owner.relative_attention_bias.weight.double()[buckets].permute(
            2, 0, 1
        )
    # Not −inf: queries of padding see nothing, and must not turn gradients into NaN.
    scores = scores.masked_fill(~case.seen(), -1e300)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def with_something_to_see(case: Case, values: Tensor) -> Tensor:
    """Without the queries to which every key is hidden. (batch, queries, …) → (n, …)"""
    return values[case.seen().any(-1)[:, 0]]
