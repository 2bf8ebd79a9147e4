"""Power and truncated bases from "Giraffe": slow the slow pairs down, or stop them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError
from ropepatch.methods.base import Method, RotaryFrequencies, RotaryGeometry, require_number
from ropepatch.methods.registry import register_method
from ropepatch.positions import turns


@register_method("power")
@dataclass(frozen=True, kw_only=True)
class Power(Method):
    """θ_i·(1 − i/(d/2))^p (arXiv 2308.10882, eq. 5). `factor` only says how far the limit moves."""

    exponent: float = 0.5  #: p above; 0 changes nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("exponent", self.exponent, at_least=0)

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        pairs = geometry.dim // 2
        fraction = torch.arange(pairs, dtype=torch.float64) / pairs
        return RotaryFrequencies(geometry.inv_freq * (1.0 - fraction) ** self.exponent)


@register_method("truncated")
@dataclass(frozen=True, kw_only=True)
class Truncated(Method):
    """Keep fast pairs, give middling ones one frequency, stop the rest (arXiv 2308.10882, eq. 6).

    The cut-offs are in turns within L. `factor` only says how far the limit moves.
    """

    keep_above: float = 1.0  #: pairs making at least this many turns within L are kept
    stop_below: float = 1 / 8  #: pairs making fewer turns than this within L stop
    middle: float = 1 / 16  #: turns within L that the pairs in between are given

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("keep_above", "stop_below", "middle"):
            require_number(option, getattr(self, option), above=0)
        if self.stop_below > self.keep_above:
            raise MethodOptionError(
                f"stop_below is {self.stop_below!r}; allowed: at most keep_above ({self.keep_above!r})"
            )
        if self.middle > self.stop_below:
            raise MethodOptionError(
                f"middle is {self.middle!r}; allowed: at most stop_below ({self.stop_below!r}), so "
                "that no pair turns faster than before"
            )

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        trained = geometry.original_max_position_embeddings
        inv_freq = geometry.inv_freq
        within = turns(inv_freq, trained)
        slowed = torch.full_like(inv_freq, 2 * math.pi * self.middle / trained)
        slowed = torch.where(within < self.stop_below, 0.0, slowed)
        return RotaryFrequencies(torch.where(within < self.keep_above, slowed, inv_freq))
