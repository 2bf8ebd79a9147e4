"""NTK-aware scaling: what tells near tokens apart stays, what reaches far is stretched."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ropepatch.errors import MethodOptionError
from ropepatch.methods.base import (
    AlibiGeometry,
    LengthDependent,
    Method,
    RotaryFrequencies,
    RotaryGeometry,
    require_number,
    stretch,
)
from ropepatch.methods.registry import register_method
from ropepatch.positions import inverse_frequencies, ntk_base


def _require_two_pairs(method: Method, geometry: RotaryGeometry) -> None:
    """The exponent d/(d−2) divides by zero when a single pair is rotated."""
    if geometry.dim <= 2:
        raise MethodOptionError(
            f"dim is {geometry.dim}; allowed: at least 4 for {method.name!r}, whose exponent is "
            "dim/(dim-2); use 'linear' instead"
        )


@register_method("ntk")
@dataclass(frozen=True, kw_only=True)
class Ntk(Method):
    """Base b·α^(d/(d−2)): the first pair unchanged, the last turning α times slower (bloc97, 2023).

    Without training the usable length stays below α·L: choose α of 1.5 to 2 times the factor.
    ALiBi's slopes go the same way: the steepest unchanged, the gentlest divided by α, those between
    by their place on a logarithmic scale.
    """

    alpha: float | None = None  #: slow-down of the last pair or gentlest slope; default: `factor`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            require_number("alpha", self.alpha, at_least=1)

    @property
    def slow_down(self) -> float:
        """α, given or by default."""
        return float(self.factor if self.alpha is None else self.alpha)

    def scaled_base(self, geometry: RotaryGeometry) -> float:
        """The new base. Raises MethodOptionError for a single pair."""
        _require_two_pairs(self, geometry)
        return float(ntk_base(geometry.base, self.slow_down, geometry.dim))

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        return RotaryFrequencies(inverse_frequencies(geometry.dim, self.scaled_base(geometry)))

    def alibi(self, geometry: AlibiGeometry, length: Tensor | None = None) -> Tensor:
        if geometry.num_heads == 1:
            raise MethodOptionError(
                f"num_heads is 1; allowed: at least 2 for {self.name!r}; use 'linear' instead"
            )
        gentleness = -geometry.slopes.log()
        # 0 for the steepest, 1 for the gentlest: (h − 1)/(H − 1) when H is a power of two.
        share = (gentleness - gentleness.min()) / (gentleness.max() - gentleness.min())
        return geometry.slopes / self.slow_down**share

    def native(self, geometry: RotaryGeometry) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": self.scaled_base(geometry)}


@register_method("dynamic_ntk", aliases=("dynamic",))
@dataclass(frozen=True, kw_only=True)
class DynamicNtk(LengthDependent):
    """NTK-aware with α = a·T/L − (a − 1) for sequences of T > L tokens (emozilla, 2023).

    With a = 1 it is the YaRN paper's "dynamic NTK" (arXiv 2309.00071, §3.3). transformers'
    `dynamic` calls a "factor".
    """

    native_rope_type: ClassVar[str | None] = "dynamic"

    alpha: float = 1.0  #: a above; more than 1 scales harder than the length asks for

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("alpha", self.alpha, at_least=1)

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        _require_two_pairs(self, geometry)
        slow_down = self.alpha * stretch(length, geometry) - (self.alpha - 1)
        base = ntk_base(geometry.base, slow_down[..., None], geometry.dim)
        return RotaryFrequencies(inverse_frequencies(geometry.dim, base))
