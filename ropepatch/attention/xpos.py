"""xPos: what of a score decays with the distance, folded into queries and keys (arXiv 2212.10554)."""

import math

import torch
from torch import Tensor

LARGEST = 256.0  #: of the factors of keys: leaves room for them in float16


def block_length(log_decay: Tensor) -> int:
    """Queries for which keys are scaled at a time, so that no factor leaves the range of float16."""
    return max(1, int(math.log(LARGEST) / -float(log_decay.min())))


def decayed(
    query: Tensor, key: Tensor, log_decay: Tensor, offset: int | Tensor, centre: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys whose product carries e^(log_decay·D) in every channel, D their distance.

    (batch, heads, n, channels), with log_decay (channels,) ≤ 0 and `offset` the position of the first
    query; keys start at 0. Positions count from `centre`, which falls out of the product.
    """
    last = offset - centre + query.shape[2]
    return (
        _scaled(query, log_decay, offset - centre, last),
        _scaled(key, -log_decay, -centre, last),
    )


def _scaled(states: Tensor, log_factor: Tensor, first: int | Tensor, last: int | Tensor) -> Tensor:
    places = torch.arange(states.shape[2], device=states.device) + first
    # Keys further on than the queries are in the future, which a mask hides.
    places = places.clamp(max=last)
    factors = (places[:, None].double() * log_factor.to(states.device).double()).exp()
    return (states.float() * factors.float()).to(states.dtype)
