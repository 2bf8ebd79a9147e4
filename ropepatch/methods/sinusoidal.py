"""Sinusoidal positions, added to the embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropepatch.methods.registry import register_method
from ropepatch.methods.replacement import Parameters, TableGeometry, TableMethod
from ropepatch.positions import sinusoids


@register_method("sinusoidal")
@dataclass(frozen=True, kw_only=True)
class Sinusoidal(TableMethod):
    """sin and cos of p/10000^(2i/dim) in channels 2i and 2i + 1 (arXiv 1706.03762, §3.5)."""

    def vectors(self, geometry: TableGeometry, positions: Tensor, parameters: Parameters) -> Tensor:
        return sinusoids(positions, geometry.dim)


@register_method("scaled_sinusoidal")
@dataclass(frozen=True, kw_only=True)
class ScaledSinusoidal(TableMethod):
    """Sinusoids times one learned number, dim^−0.5 at first (arXiv 2202.10447)."""

    def initial(self, geometry: TableGeometry) -> dict[str, Tensor]:
        # (1,) and not (): what shards a model over devices takes no parameter without dimensions.
        return {"scalar": torch.tensor([geometry.dim**-0.5], dtype=torch.float64)}

    def vectors(self, geometry: TableGeometry, positions: Tensor, parameters: Parameters) -> Tensor:
        return sinusoids(positions, geometry.dim) * parameters["scalar"]
