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


@dataclass(frozen=True, kw_only=True)
class _Kerple(ScoreBiasMethod):
    """What both variants have: r1 and r2 of every head. Start and limits are those of the authors' code."""

    starts_below: ClassVar[tuple[float, float]]  #: r1 and r2 start uniform between 0 and these

    seed: int = 0  #: of the start

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)

    def initial(self, geometry: HeadGeometry) -> dict[str, Tensor]:
        size = (2, geometry.num_heads)
        drawn = torch.rand(size, dtype=torch.float64, generator=generator(self.seed))
        starts = zip(("r1", "r2"), drawn, self.starts_below, strict=True)
        return {name: (below * values).clamp(min=_LEAST) for name, values, below in starts}


@register_method("kerple_log")
@dataclass(frozen=True, kw_only=True)
class KerpleLog(_Kerple):
    """−r1·log(1 + r2·|D|) (arXiv 2205.09921, logarithmic variant)."""

    starts_below: ClassVar[tuple[float, float]] = (2.0, 1.0)
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "r1": (_LEAST, math.inf),
        "r2": (_LEAST, math.inf),
    }

    def bias(self, geometry: HeadGeometry, distances: Tensor, parameters: Parameters) -> Tensor:
        r1, r2 = (by_head(parameters[name], distances) for name in ("r1", "r2"))
        return -r1 * torch.log1p(r2 * distances.abs())


@register_method("kerple_power")
@dataclass(frozen=True, kw_only=True)
class KerplePower(_Kerple):
    """−r1·|D|^r2 (arXiv 2205.09921, power variant)."""

    starts_below: ClassVar[tuple[float, float]] = (1.0, 2.0)
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "r1": (_LEAST, math.inf),
        "r2": (_LEAST, 2.0),  # beyond 2 the kernel is no longer conditionally positive definite
    }

    def bias(self, geometry: HeadGeometry, distances: Tensor, parameters: Parameters) -> Tensor:
        r1, r2 = (by_head(parameters[name], distances) for name in ("r1", "r2"))
        return -r1 * distances.abs() ** r2
