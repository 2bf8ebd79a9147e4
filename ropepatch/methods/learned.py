"""A learned vector for every position, added to the embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropepatch.methods.registry import register_method
from ropepatch.methods.replacement import (
    Parameters,
    TableGeometry,
    TableMethod,
    generator,
    require_seed,
)


@register_method("learned")
@dataclass(frozen=True, kw_only=True)
class Learned(TableMethod):
    """A row for each position (arXiv 1705.03122, §3.1), and none beyond the last."""

    replaces: ClassVar[tuple[str, ...]] = ("rotary", "relative")

    seed: int = 0  #: of the start: normal, standard deviation 0.02, as in BERT and GPT-2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)

    def initial(self, geometry: TableGeometry) -> dict[str, Tensor]:
        shape = geometry.rows, geometry.dim
        drawn = torch.randn(shape, dtype=torch.float64, generator=generator(self.seed))
        return {"weight": 0.02 * drawn}

    def vectors(self, geometry: TableGeometry, positions: Tensor, parameters: Parameters) -> Tensor:
        return torch.nn.functional.embedding(positions, parameters["weight"])

    def longest(self, geometry: TableGeometry) -> int | None:
        return geometry.rows
