"""xPos: what of a score decays with the distance, folded into queries and keys (arXiv 2212.10554)."""

import torch
from torch import Tensor

#: Queries for which keys are scaled at a time, so that no factor leaves the range of bfloat16.
STEP = 4096


def decayed(
    query: Tensor, key: Tensor, log_decay: Tensor, offset: int | Tensor, centre: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys whose product carries e^(log_decay·D) in every channel, D their distance.

    (batch, heads, n, channels), with log_decay (channels,) ≤ 0 and `offset` the position of the first
    query; keys start at 0. Positions count from `centre`, which falls out of the product.
    """
    return (
        _scaled(query, log_decay, offset, centre),
        _scaled(key, -log_decay, 0, centre),
    )


def _scaled(
    states: Tensor, log_factor: Tensor, first: int | Tensor, centre: int | Tensor
) -> Tensor:
    places = torch.arange(states.shape[2], device=states.device) + (first - centre)
    # Keys further on than a block of queries are in the future, which a mask hides.
    places = places.clamp(max=STEP)
    factors = (places[:, None].double() * log_factor.to(states.device).double()).exp()
    return (states.float() * factors.float()).to(states.dtype)
