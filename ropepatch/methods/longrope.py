"""LongRoPE: one searched factor per pair, a list for short and a list for long sequences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError
from ropepatch.methods.base import (
    LengthDependent,
    RotaryFrequencies,
    RotaryGeometry,
    require_factors,
    require_number,
)
from ropepatch.methods.registry import register_method


@register_method("longrope", aliases=("su",))
@dataclass(frozen=True, kw_only=True)
class LongRope(LengthDependent):
    """θ_i / factors_i, the short list for T ≤ L and the long one beyond (arXiv 2402.13753, §3.2).

    The attention factor √(1 + ln s/ln L) applies to both lists, as in the released Phi-3 code.
    """

    native_rope_type: ClassVar[str | None] = "longrope"

    short_factor: Sequence[float]  #: dim/2 divisors for sequences of up to L tokens
    long_factor: Sequence[float]  #: dim/2 divisors for longer sequences
    attention_factor: float | None = None  #: multiplies cos and sin; by default √(1 + ln s/ln L)

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("short_factor", "long_factor"):
            # A frozen dataclass stores the checked tuple this way.
            object.__setattr__(self, option, require_factors(option, getattr(self, option)))
        if self.attention_factor is not None:
            require_number("attention_factor", self.attention_factor, above=0)

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        short, long = (
            self._divisors(option, geometry) for option in ("short_factor", "long_factor")
        )
        boundary = geometry.original_max_position_embeddings
        beyond = torch.tensor(False) if length is None else length > boundary
        inv_freq, device = geometry.inv_freq.to(beyond.device), beyond.device
        chosen = torch.where(beyond[..., None], long.to(device), short.to(device))
        factor = torch.full_like(beyond, self._attention_factor(geometry), dtype=torch.float64)
        return RotaryFrequencies(inv_freq / chosen, factor)

    def _divisors(self, option: str, geometry: RotaryGeometry) -> Tensor:
        given = getattr(self, option)
        if len(given) != geometry.dim // 2:
            raise MethodOptionError(
                f"{option} has {len(given)} entries; allowed: {geometry.dim // 2}, one for each "
                f"pair of the {geometry.dim} rotated channels"
            )
        return torch.tensor(given, dtype=torch.float64)

    def _attention_factor(self, geometry: RotaryGeometry) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        if self.factor == 1 or geometry.original_max_position_embeddings == 1:
            return 1.0
        growth = math.log(self.factor) / math.log(geometry.original_max_position_embeddings)
        return math.sqrt(1 + growth)
