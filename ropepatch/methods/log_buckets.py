"""Relative buckets re-spaced to a longer reach: short distances as trained, long ones coarser."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ropepatch.methods.base import Method, RelativeGeometry
from ropepatch.methods.registry import register_method


@register_method("log")
@dataclass(frozen=True, kw_only=True)
class LogBuckets(Method):
    """T5's buckets log-spaced up to max_distance·s instead of max_distance (arXiv 1910.10683, §2.1).

    Distances with a bucket of their own keep it at every factor: those below num_buckets/2, or
    num_buckets/4 when bidirectional; so do those of the first log-spaced bucket, which only widens.
    Those beyond cannot: the table has no rows to add, so its last ones share the longer reach.
    """

    def relative(self, geometry: RelativeGeometry, relative_position: Tensor) -> Tensor:
        reach = self.native_relative(geometry)
        return replace(geometry, max_distance=reach).buckets(relative_position)

    def native_relative(self, geometry: RelativeGeometry) -> int:
        return math.ceil(geometry.max_distance * self.factor)
