"""p-RoPE: rotate only the fastest part of the pairs."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropepatch.methods.base import Method, RotaryFrequencies, RotaryGeometry, require_number
from ropepatch.methods.registry import register_method


@register_method("proportional", aliases=("p_rope",))
@dataclass(frozen=True, kw_only=True)
class Proportional(Method):
    """The first ⌊p·d/2⌋ pairs at θ/s, the others at 0 (p-RoPE, arXiv 2410.06205, §6). p = 0 is NoPE."""

    native_rope_type: ClassVar[str | None] = "proportional"

    proportion: float = 0.75  #: p above, the part of the pairs that still turns

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("proportion", self.proportion, at_least=0, at_most=1)

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        inv_freq = geometry.inv_freq / self.factor
        turning = torch.arange(len(inv_freq)) < math.floor(self.proportion * len(inv_freq))
        return RotaryFrequencies(torch.where(turning, inv_freq, 0.0))
