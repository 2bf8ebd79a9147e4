"""Sandwich: what the products of sinusoidal positions leave of a distance, as a bias."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError
from ropepatch.methods.registry import register_method
from ropepatch.methods.replacement import HeadGeometry, Parameters, ScoreBiasMethod, by_head


@register_method("sandwich")
@dataclass(frozen=True, kw_only=True)
class Sandwich(ScoreBiasMethod):
    """(Σ_i cos(D/10000^(2i/d̄)) − d̄/2) / (8h/H), i = 1…d̄/2, h = 1…H (arXiv 2212.10356)."""

    dim: int = 128  #: d̄, channels of the sinusoids; of no part of the model

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.dim) is not int or self.dim < 2 or self.dim % 2:
            raise MethodOptionError(
                f"dim is {self.dim!r}; allowed: an even number of channels, at least 2"
            )

    def bias(self, geometry: HeadGeometry, distances: Tensor, parameters: Parameters) -> Tensor:
        # In float64, as float32 angles of far tokens are off by hundredths; pair by pair, as all at
        # once would need 64 times the memory.
        exact, total = distances.double(), torch.zeros_like(distances, dtype=torch.float64)
        for pair in range(1, self.dim // 2 + 1):
            total += torch.cos(exact / 10000.0 ** (2 * pair / self.dim)) - 1
        heads = torch.arange(1, geometry.num_heads + 1, dtype=torch.float64) / geometry.num_heads
        return (total / by_head(8 * heads, total)).to(distances.dtype)
