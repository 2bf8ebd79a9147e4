"""One call of attention, as every way of computing it takes it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Call:
    """Queries, and keys and values as long as they can be seen, for all heads."""

    query: Tensor  #: (batch, heads, query, channels)
    key: Tensor  #: (batch, heads, key, channels)
    value: Tensor
    mask: Tensor | None  #: bool (batch or 1, heads or 1, query or 1, key)
    causal: bool  #: queries see earlier keys only, as the curve says
    scale: float
    dropout: float
    softcap: float | None = None  #: scores are squashed to ± this before the bias is added
    curve: Tensor | None = None  #: float32 (1 or batch, heads, query + key − 1)

    @property
    def key_mask(self) -> Tensor | None:
        """The mask of padding alone. (batch, key)"""
        return None if self.mask is None else self.mask[:, 0, 0]
