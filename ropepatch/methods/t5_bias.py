"""T5's bias: a learned number for every head and bucket of distances."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropepatch.methods.base import RelativeGeometry
from ropepatch.methods.registry import register_method
from ropepatch.methods.replacement import HeadGeometry, Parameters, ScoreBiasMethod


@register_method("t5_bias")
@dataclass(frozen=True, kw_only=True)
class T5Bias(ScoreBiasMethod):
    """table[bucket(D)] (arXiv 1910.10683, §2.1). Bidirectional models share the buckets out."""

    replaces: ClassVar[tuple[str, ...]] = ("rotary", "alibi", "absolute")

    num_buckets: int = 32  #: rows of the table, both directions together
    max_distance: int = 128  #: tokens from which on every distance is in the last bucket

    def __post_init__(self) -> None:
        super().__post_init__()
        self._buckets(bidirectional=False)

    def initial(self, geometry: HeadGeometry) -> dict[str, Tensor]:
        self._buckets(geometry.bidirectional)
        # Zero, as random numbers would tell a checkpoint nothing but noise of distances; what a
        # distance is worth has a gradient from the first step on.
        shape = self.num_buckets, geometry.num_heads
        return {"weight": torch.zeros(shape, dtype=torch.float64)}

    def bias(self, geometry: HeadGeometry, distances: Tensor, parameters: Parameters) -> Tensor:
        buckets = self._buckets(geometry.bidirectional).buckets(-distances)
        rows = torch.nn.functional.embedding(buckets, parameters["weight"].to(distances))
        return rows.movedim(-1, 0)

    def beyond(
        self, geometry: HeadGeometry, parameters: dict[str, Tensor], longest: int
    ) -> dict[str, Tensor]:
        """Distances that no sample had are worth what the longest one is."""
        weight = parameters["weight"].clone()
        far = torch.arange(longest, max(longest, self.max_distance) + 1)
        for direction in (1, -1) if geometry.bidirectional else (1,):
            rows = self._buckets(geometry.bidirectional).buckets(-direction * far)
            weight[rows] = weight[rows[0]].clone()
        return {"weight": weight}

    def _buckets(self, bidirectional: bool) -> RelativeGeometry:
        return RelativeGeometry(
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            bidirectional=bidirectional,
            original_max_position_embeddings=1,  # which buckets do not depend on
        )
