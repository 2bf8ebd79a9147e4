"""The scores of an attention module, added up by distance while it reads a text."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropepatch.attention.score_bias import ScoreBias
from ropepatch.methods.fitting import correlations


@dataclass(eq=False)
class ScoreProfile:
    """Of one module, all texts equally long."""

    sums: Tensor | None = None  #: float64 (heads, 2n − 1), distances 1 − n … n − 1
    rows: int = 0

    def add(self, query: Tensor, key: Tensor, scale: float, bias: ScoreBias | None = None) -> None:
        """Scores of (batch, heads, n, channels) before softmax, with the module's own bias."""
        made = correlations(query, key).sum(0) * scale
        length = query.shape[2]
        if bias is not None:
            distances = torch.arange(1 - length, length, device=query.device)
            lengths = torch.full((1,), length, device=query.device)
            pairs = (length - distances.abs()) * len(query)
            made = made + bias.curve(distances, lengths)[0].double() * pairs
        self.sums = made if self.sums is None else self.sums + made
        self.rows += len(query)

    def mean(self, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Distances (n,), the mean score at each (heads, n), and of how many pairs that is the mean (n,)."""
        assert self.sums is not None
        sums = self.sums.cpu()
        length = (sums.shape[-1] + 1) // 2
        distances = torch.arange(1 - length, length)
        seen = distances >= 0 if causal else distances >= 1 - length
        pairs = ((length - distances.abs()) * self.rows).double()[seen]
        return distances[seen], sums[:, seen] / pairs, pairs
