"""Position interpolation: every distance counts as a `factor`-th of itself."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ropepatch.methods.base import (
    AlibiGeometry,
    LengthDependent,
    Method,
    RelativeGeometry,
    RotaryFrequencies,
    RotaryGeometry,
    stretch,
)
from ropepatch.methods.registry import register_method


@register_method("linear", aliases=("pi",))
@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """θ/s (Position Interpolation, arXiv 2306.15595, eq. 4); ALiBi's slopes/s; T5's bucket of D/s;
    row m/s of a table of positions.

    Rotary models are good only after a fine-tune.
    """

    native_rope_type: ClassVar[str | None] = "linear"
    needs_training: ClassVar[bool] = True

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        return RotaryFrequencies(geometry.inv_freq / self.factor)

    def alibi(self, geometry: AlibiGeometry, length: Tensor | None = None) -> Tensor:
        return geometry.slopes / self.factor

    def relative(self, geometry: RelativeGeometry, relative_position: Tensor) -> Tensor:
        # Rounded up, so that only a token itself is at distance 0. Rounding down would read an
        # untrained row: T5 counts distance 0 as past, and no training ever meets the bucket of
        # "future, distance 0".
        distance = (relative_position.abs().double() / self.factor).ceil().long()
        return geometry.buckets(relative_position.sign() * distance)

    def absolute(self, positions: Tensor) -> Tensor:
        return positions.double() / self.factor

    def native(self, geometry: RotaryGeometry) -> dict[str, Any]:
        return {"rope_type": "linear", "rope_theta": geometry.base, "factor": float(self.factor)}


@register_method("dynamic_linear")
@dataclass(frozen=True, kw_only=True)
class DynamicLinear(LengthDependent):
    """θ/max(1, T/L): interpolation by just as much as the sequence needs (kaiokendev, 2023).

    ALiBi's slopes·L/max(L, T) (arXiv 2310.13017).
    """

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        factor = stretch(length, geometry)
        return RotaryFrequencies(geometry.inv_freq.to(factor.device) / factor[..., None])

    def alibi(self, geometry: AlibiGeometry, length: Tensor | None = None) -> Tensor:
        factor = stretch(length, geometry)
        return geometry.slopes.to(factor.device) / factor[..., None]
