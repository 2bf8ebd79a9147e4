"""Biases that depend on the distance between query and key only: one curve per head, never a matrix."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ropepatch.attention.row_scales import RowScales, Scaled, row_scales
from ropepatch.errors import MethodError
from ropepatch.methods.base import (
    AlibiGeometry,
    Geometry,
    LengthDependent,
    Method,
    RelativeGeometry,
)
from ropepatch.methods.replacement import ScoreBiasMethod


class ScoreBias(Protocol):
    """What is added to the scores of a query and a key, by their distance."""

    method: Method | None

    def curve(self, distances: Tensor, lengths: Tensor) -> Tensor:
        """Bias at distances query − key (n,), for rows of `lengths` tokens (batch,).

        float32, (1, heads, n) if all rows are alike, else (batch, heads, n).
        """

    def is_scaled(self) -> bool:
        """Whether the method changes the bias of a row as long as the model is for.

        Raises MethodError when the method (users write some) makes something else than a bias.
        """


_FAR = 1 << 20  # tokens; no scaling begins beyond


def _longest(method: Method, geometry: Geometry) -> int:
    """Tokens that a patched model is for, as far as they are worth looking at."""
    return min(round(method.factor * geometry.original_max_position_embeddings), _FAR)


@dataclass(eq=False)
class AlibiBias(Scaled):
    """−m·D for every head (ALiBi, arXiv 2108.12409, §3); `method=None` leaves the slopes unscaled."""

    geometry: AlibiGeometry
    method: Method | None

    # Slopes by a method: made once, as every layer asks for them at every step.
    _made: tuple[Method | None, Tensor] | None = field(default=None, init=False, repr=False)

    def _by_length(self, tokens: Tensor) -> Tensor:
        assert self.method is not None
        return self.method.alibi(self.geometry, tokens.cpu())

    def slopes(self, lengths: Tensor) -> Tensor:
        """Slopes of every row, where `lengths` are. (1, heads) or (batch, heads), float32"""
        if isinstance(self.method, LengthDependent):
            scales = row_scales(self)
            if scales is None:  # a layer that gradient checkpointing does again, after the call
                known = self.method.training_length if torch.is_grad_enabled() else None
                scales = RowScales(lengths if known is None else lengths.new_full((1,), known))
            made = scales.once("slopes", self._by_length)
        else:
            if self._made is None or self._made[0] is not self.method:
                geometry, method = self.geometry, self.method
                slopes = geometry.slopes if method is None else method.alibi(geometry)
                self._made = (method, slopes.float())
            made = self._made[1]
        return made.view(-1, self.geometry.num_heads).to(lengths.device, torch.float32)

    def is_scaled(self) -> bool:
        """See ScoreBias."""
        if self.method is None:
            return False
        plain = self.geometry.slopes
        made = self.method.alibi(self.geometry, torch.tensor(_longest(self.method, self.geometry)))
        if made.shape != plain.shape or not made.isfinite().all():
            raise MethodError(
                f"{self.method.name!r} made slopes of shape {tuple(made.shape)}; allowed: "
                f"{len(plain)} finite numbers"
            )
        return not torch.equal(made, plain)

    def curve(self, distances: Tensor, lengths: Tensor) -> Tensor:
        """See ScoreBias."""
        return -self.slopes(lengths)[..., None] * distances


@dataclass(eq=False)
class BucketBias:
    """T5's learned bias: one row of a table for each bucket of distances (arXiv 1910.10683, §2.1)."""

    geometry: RelativeGeometry
    method: Method | None
    owner: Any  #: the attention module with the table; asked at every call, as PEFT may wrap it

    def buckets(self, distances: Tensor) -> Tensor:
        """The bucket of every distance. (n,) → (n,)"""
        if self.method is None:
            return self.geometry.buckets(-distances)
        return self.method.relative(self.geometry, -distances)

    def is_scaled(self) -> bool:
        """See ScoreBias."""
        if self.method is None:
            return False
        longest = _longest(self.method, self.geometry)
        positions = torch.arange(-longest, longest + 1)
        made = self.method.relative(self.geometry, positions)
        rows = self.geometry.num_buckets
        if made.shape != positions.shape or not ((made >= 0) & (made < rows)).all():
            raise MethodError(
                f"{self.method.name!r} made buckets of shape {tuple(made.shape)} from "
                f"{int(made.min())} to {int(made.max())}; allowed: {len(positions)}, from 0 to {rows - 1}"
            )
        return not torch.equal(made, self.geometry.buckets(positions))

    def curve(self, distances: Tensor, lengths: Tensor) -> Tensor:
        """See ScoreBias."""
        # Called and not indexed, so that whoever keeps the table elsewhere or trains a copy is heard.
        rows: Tensor = self.owner.relative_attention_bias(self.buckets(distances))
        return rows.t()[None].float().contiguous().to(distances.device)


@dataclass(eq=False)
class PlacedBias:
    """A bias in the place of what the checkpoint had; `method=None`, or one without a bias, adds none."""

    stack: nn.Module  #: holds the module of the bias by the method's name; PEFT may wrap it there
    method: Method | None
    num_heads: int
    layer: int  #: number of the attention module in its stack

    def is_scaled(self) -> bool:
        """See ScoreBias. A bias may train from nothing."""
        if self.method is None:
            return False
        near = torch.arange(64, device=next(self.stack.parameters()).device)
        return bool(self.curve(near, near[:1]).any())

    def curve(self, distances: Tensor, lengths: Tensor) -> Tensor:
        """See ScoreBias."""
        if not isinstance(self.method, ScoreBiasMethod):
            return torch.zeros(1, self.num_heads, len(distances), device=distances.device)
        made: Tensor = self.stack.get_submodule(self.method.name)(distances, self.layer)
        return made[None].to(distances.device)
