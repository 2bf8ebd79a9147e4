"""KERPLE: penalties by distance whose shape every head learns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropepatch.methods.registry import register_method
from ropepatch.methods.replacement import (
    HeadGeometry,
    Parameters,
    ScoreBiasMethod,
    by_head,
    generator,
    require_seed,
)

_LEAST = 0.01  # as in the authors' code, so that no head stops to tell distances apart


def _uniform(geometry: HeadGeometry, seed: int) -> Tensor:
    """Two numbers for each head, uniform between 0 and 1. (2, heads)"""
    size = (2, geometry.num_heads)
    return torch.rand(size, dtype=torch.float64, generator=generator(seed))


@register_method("kerple_log")
@dataclass(frozen=True, kw_only=True)
class KerpleLog(ScoreBiasMethod):
    """−r1·log(1 + r2·|D|) (arXiv 2205.09921, logarithmic variant).

    Start and limits are those of the authors' code.
    """

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "r1": (_LEAST, math.inf),
        "r2": (_LEAST, math.inf),
    }

    seed: int = 0  #: of the start: r1 uniform between 0 and 2, r2 between 0 and 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)

    def initial(self, geometry: HeadGeometry) -> dict[str, Tensor]:
        first, second = _uniform(geometry, self.seed)
        return {"r1": (2 * first).clamp(min=_LEAST), "r2": second.clamp(min=_LEAST)}

    def bias(self, geometry: HeadGeometry, distances: Tensor, parameters: Parameters) -> Tensor:
        r1, r2 = (by_head(parameters[name], distances) for name in ("r1", "r2"))
        return -r1 * torch.log1p(r2 * distances.abs())


@register_method("kerple_power")
@dataclass(frozen=True, kw_only=True)
class KerplePower(ScoreBiasMethod):
    """−r1·|D|^r2 (arXiv 2205.09921, power variant).

    Start and limits are those of the authors' code.
    """

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "r1": (_LEAST, math.inf),
        "r2": (_LEAST, 2.0),  # beyond 2 the kernel is no longer conditionally positive definite
    }

    seed: int = 0  #: of the start: r1 uniform between 0 and 1, r2 between 0 and 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)

    def initial(self, geometry: HeadGeometry) -> dict[str, Tensor]:
        first, second = _uniform(geometry, self.seed)
        return {"r1": first.clamp(min=_LEAST), "r2": (2 * second).clamp(min=_LEAST)}

    def bias(self, geometry: HeadGeometry, distances: Tensor, parameters: Parameters) -> Tensor:
        r1, r2 = (by_head(parameters[name], distances) for name in ("r1", "r2"))
        return -r1 * distances.abs() ** r2
