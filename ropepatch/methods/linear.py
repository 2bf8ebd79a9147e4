"""Position interpolation: every pair turns `factor` times slower."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ropepatch.methods.base import Method, RotaryFrequencies, RotaryGeometry, stretch
from ropepatch.methods.registry import register_method


@register_method("linear", aliases=("pi",))
@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """θ/s (Position Interpolation, arXiv 2306.15595, eq. 4). Good only after a fine-tune."""

    native_rope_type: ClassVar[str | None] = "linear"
    needs_training: ClassVar[bool] = True

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        return RotaryFrequencies(geometry.inv_freq / self.factor)

    def native(self, geometry: RotaryGeometry) -> dict[str, Any]:
        return {"rope_type": "linear", "rope_theta": geometry.base, "factor": float(self.factor)}


@register_method("dynamic_linear")
@dataclass(frozen=True, kw_only=True)
class DynamicLinear(Method):
    """θ/max(1, T/L): interpolation by just as much as the sequence needs (kaiokendev, 2023)."""

    length_dependent: ClassVar[bool] = True

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        factor = stretch(length, geometry)
        return RotaryFrequencies(geometry.inv_freq.to(factor.device) / factor[..., None])
