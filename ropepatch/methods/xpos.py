"""xPos: rotary positions whose product decays with the distance, slow pairs least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropepatch.methods.base import RotaryFrequencies, RotaryGeometry, require_number
from ropepatch.methods.registry import register_method
from ropepatch.methods.replacement import Replacement


@register_method("xpos")
@dataclass(frozen=True, kw_only=True)
class XPos(Replacement):
    """Queries times ζ_i^(m/B), keys times ζ_i^(−n/B); ζ_i = (2i + 0.4d)/(1.4d) (arXiv 2212.10554).

    The rotation stays. For causal models only: towards the future the product would grow.
    """

    replaces: ClassVar[tuple[str, ...]] = ("rotary",)

    scale_base: float = 512.0  #: B above, tokens over which pair i decays to ζ_i

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("scale_base", self.scale_base, above=0)

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        return RotaryFrequencies(geometry.inv_freq)

    def log_decay(self, geometry: RotaryGeometry) -> Tensor:
        """ln ζ_i / B, nats for each token of distance, below 0, float64. (dim/2,)"""
        pairs = torch.arange(0, geometry.dim, 2, dtype=torch.float64)
        decay = (pairs + 0.4 * geometry.dim) / (1.4 * geometry.dim)
        return decay.log() / self.scale_base
