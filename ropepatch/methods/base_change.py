"""Adjusted base frequency: another `rope_theta`, nothing else."""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError
from ropepatch.methods.base import Method, RotaryFrequencies, RotaryGeometry, require_number
from ropepatch.methods.registry import register_method
from ropepatch.positions import inverse_frequencies, rotary_coherence

# Bases far below the bound fail early, so small blocks reject them cheaply.
_DISTANCES_PER_BLOCK = 4096


def _stays_coherent(dim: int, base: float, length: int) -> bool:
    """Whether Σ cos(D·θ_i) is nowhere negative for D = 0 … length."""
    inv_freq = inverse_frequencies(dim, base)
    blocks = torch.arange(length + 1).split(_DISTANCES_PER_BLOCK)
    return all(bool((rotary_coherence(inv_freq, block) >= 0).all()) for block in blocks)


@cache
def _lower_base_bound(dim: int, length: int) -> float:
    """The first base, in steps of 5 %, that prefers similar keys at all distances up to `length`.

    The definition of arXiv 2405.14591, eq. 9 and 10, evaluated for this head size; the paper's own
    table is for 128 channels. Bases that qualify form narrow islands around and above the paper's
    values, so another grid finds another one, within a factor of 2. Raises MethodOptionError when
    there is none below 1e12.
    """
    base = 1000.0
    while not _stays_coherent(dim, base, length):
        base *= 1.05
        if base > 1e12:
            raise MethodOptionError(
                f"no base below 1e12 serves {length} tokens with {dim} rotated channels; give "
                "new_base or a smaller factor"
            )
    return base


@register_method("base_change", aliases=("abf",))
@dataclass(frozen=True, kw_only=True)
class BaseChange(Method):
    """Replace the base (ABF, arXiv 2309.16039, §2.1). Needs a fine-tune to pay off."""

    needs_training: ClassVar[bool] = True

    new_base: float | None = None  #: when not given, the lower bound for the target length

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new_base is not None:
            require_number("new_base", self.new_base, above=1)

    def chosen_base(self, geometry: RotaryGeometry) -> float:
        """`new_base`, or the lower bound for factor × L, never below the checkpoint's own base.

        Factor 1 keeps the checkpoint's base, even if the bound for L itself is higher.
        """
        if self.new_base is not None:
            return float(self.new_base)
        if self.factor == 1:
            return float(geometry.base)
        target = round(self.factor * geometry.original_max_position_embeddings)
        return max(geometry.base, _lower_base_bound(geometry.dim, target))

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        return RotaryFrequencies(inverse_frequencies(geometry.dim, self.chosen_base(geometry)))

    def native(self, geometry: RotaryGeometry) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": self.chosen_base(geometry)}
