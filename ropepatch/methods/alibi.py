"""ALiBi: a penalty that grows with the distance, by a slope of every head."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError
from ropepatch.methods.base import require_one_of
from ropepatch.methods.registry import register_method
from ropepatch.methods.replacement import (
    HeadGeometry,
    Parameters,
    ScoreBiasMethod,
    by_head,
    generator,
    require_seed,
)
from ropepatch.positions import alibi_slopes


@register_method("alibi")
@dataclass(frozen=True, kw_only=True)
class Alibi(ScoreBiasMethod):
    """−m_h·|D| (arXiv 2108.12409, §3); slopes of 2^−8 to 1.

    `directions="split"` is the authors' "nonsymmetric" form for encoders: the first half of the
    heads sees the past, the second the future, with the same slopes; all see the token itself.
    Models that are not bidirectional have one direction, whatever the option says.
    """

    replaces: ClassVar[tuple[str, ...]] = ("rotary", "relative", "absolute")

    #: "trainable" starts geometric; "random" is fixed, log-uniform between 2^−8 and 1
    slopes: Literal["geometric", "trainable", "random"] = "geometric"
    directions: Literal["symmetric", "split"] = "symmetric"  #: of bidirectional models
    seed: int = 0  #: of random slopes

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("slopes", self.slopes, "geometric", "trainable", "random")
        require_one_of("directions", self.directions, "symmetric", "split")
        require_seed(self.seed)

    def initial(self, geometry: HeadGeometry) -> dict[str, Tensor]:
        slopes = self._slopes(geometry)
        return {"slopes": slopes} if self.slopes == "trainable" else {}

    def bias(self, geometry: HeadGeometry, distances: Tensor, parameters: Parameters) -> Tensor:
        slopes = parameters["slopes"] if self.slopes == "trainable" else self._slopes(geometry)
        bias = -by_head(slopes, distances) * distances.abs()
        if not self._splits(geometry):
            return bias
        past = torch.arange(geometry.num_heads, device=distances.device) < geometry.num_heads // 2
        hidden = torch.where(by_head(past, distances) > 0, distances < 0, distances > 0)
        return bias.masked_fill(hidden, -torch.inf)

    def _splits(self, geometry: HeadGeometry) -> bool:
        return self.directions == "split" and geometry.bidirectional

    def _slopes(self, geometry: HeadGeometry) -> Tensor:
        """What the slopes are, or start from, float64. (heads,)"""
        heads = geometry.num_heads
        if self._splits(geometry) and heads % 2:
            raise MethodOptionError(
                f"num_heads is {heads}; allowed: an even number for directions='split'; give "
                "directions='symmetric'"
            )
        if self.slopes == "random":
            drawn = torch.rand(heads, dtype=torch.float64, generator=generator(self.seed))
            return 2.0 ** (-8 * drawn)
        return alibi_slopes(heads // 2).repeat(2) if self._splits(geometry) else alibi_slopes(heads)
