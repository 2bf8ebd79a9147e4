"""The banded scaling that Llama 3.1 was released with."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ropepatch.errors import MethodOptionError
from ropepatch.methods.base import Method, RotaryFrequencies, RotaryGeometry, require_number
from ropepatch.methods.registry import register_method
from ropepatch.positions import blend, linear_ramp, turns


@register_method("llama3")
@dataclass(frozen=True, kw_only=True)
class Llama3(Method):
    """Keep short wavelengths, interpolate long ones, blend between (Llama 3.1 reference code)."""

    native_rope_type: ClassVar[str | None] = "llama3"

    low_freq_factor: float = 1.0  #: pairs making fewer turns than this within L are interpolated
    high_freq_factor: float = 4.0  #: pairs making more turns than this within L are kept

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("low_freq_factor", self.low_freq_factor, above=0)
        require_number("high_freq_factor", self.high_freq_factor, above=0)
        if self.high_freq_factor <= self.low_freq_factor:
            raise MethodOptionError(
                f"high_freq_factor is {self.high_freq_factor!r}; allowed: more than "
                f"low_freq_factor ({self.low_freq_factor!r})"
            )

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        inv_freq = geometry.inv_freq
        within = turns(inv_freq, geometry.original_max_position_embeddings)
        kept = linear_ramp(within, self.low_freq_factor, self.high_freq_factor)
        return RotaryFrequencies(blend(inv_freq, inv_freq / self.factor, kept))

    def native(self, geometry: RotaryGeometry) -> dict[str, Any]:
        return {
            "rope_type": "llama3",
            "rope_theta": geometry.base,
            "factor": float(self.factor),
            "low_freq_factor": float(self.low_freq_factor),
            "high_freq_factor": float(self.high_freq_factor),
            "original_max_position_embeddings": geometry.original_max_position_embeddings,
        }
