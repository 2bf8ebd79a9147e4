"""Pure position maths on tensors. Angles in radians, lengths in tokens, everything in float64."""

import math

import torch
from torch import Tensor


def inverse_frequencies(dim: int, base: float | Tensor) -> Tensor:
    """θ_i = base^(−2i/dim), the radians that pair i turns per token (arXiv 2104.09864, §3.2.2).

    `base` may carry leading dimensions: (…, 1) → (…, dim/2); a number gives (dim/2,).
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    if isinstance(base, Tensor):
        exponents = exponents.to(base.device)
    # The reciprocal of a positive power, not a negative power: the two differ in the last bit.
    return 1.0 / base**exponents


def turns(inv_freq: Tensor, length: float) -> Tensor:
    """Full rotations that each pair makes over `length` tokens (YaRN, eq. 17). (dim/2,) → (dim/2,)"""
    return length * inv_freq / (2 * math.pi)


def pair_with_turns(rotations: float, *, dim: int, base: float, length: float) -> float:
    """The (fractional) pair index that makes `rotations` turns over `length` tokens.

    Solves `turns(inv_freq, length) == rotations` for the index; the authors' code of YaRN calls it
    the correction dimension.
    """
    return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))


def linear_ramp(values: Tensor, low: float, high: float) -> Tensor:
    """0 up to `low`, 1 from `high` on, straight in between. Same shape as `values`."""
    return ((values - low) / (high - low)).clamp(0.0, 1.0)


def blend(kept: Tensor, interpolated: Tensor, keep: Tensor) -> Tensor:
    """`kept` where `keep` is 1, `interpolated` where it is 0. Broadcasts."""
    # Not the weighted sum: that is off by one bit where both are equal, so factor 1 would change
    # logits.
    return torch.lerp(interpolated, kept, keep)


def ntk_base(base: float, alpha: float | Tensor, dim: int) -> float | Tensor:
    """The base whose first pair is unchanged and whose last pair turns `alpha` times slower.

    b·α^(d/(d−2)), "NTK-aware scaled RoPE" (bloc97, 2023). `alpha` may be a tensor of any shape.
    """
    return base * alpha ** (dim / (dim - 2))


def rotary_coherence(inv_freq: Tensor, distances: Tensor) -> Tensor:
    """Σ_i cos(D·θ_i): how much more a similar than a random key is attended to at distance D.

    arXiv 2405.14591, eq. 9. (dim/2,), (n,) → (n,)
    """
    return torch.cos(distances[:, None].double() * inv_freq).sum(-1)


def decay_bound(inv_freq: Tensor, distances: Tensor, log_decay: Tensor | float = 0.0) -> Tensor:
    """Mean of |S_i(D)|, S_i = Σ_{j<=i} e^(𝑖·D·θ_j): bounds scores at distance D (arXiv 2104.09864, §3.4.3).

    `log_decay` is xPos' ln ζ_j per token, which each term is multiplied by. (dim/2,), (n,) → (n,)
    """
    distances = distances[:, None].double()
    terms = torch.polar(
        (distances * log_decay).exp().expand(-1, len(inv_freq)), distances * inv_freq
    )
    return terms.cumsum(-1).abs().mean(-1)


def alibi_slopes(num_heads: int, bias_max: float = 8.0) -> Tensor:
    """Slope of every head of an unscaled ALiBi model (arXiv 2108.12409, §3). (num_heads,)

    2^(−bias_max·h/H), h = 1…H, where H is a power of two. Otherwise those of the next lower power,
    then every other one of the next higher, as in the authors' code.
    """
    lower = 1 << (num_heads.bit_length() - 1)
    exponents = [torch.arange(1, H + 1, dtype=torch.float64) / H for H in (lower, 2 * lower)]
    return 2.0 ** (-bias_max * torch.cat([exponents[0], exponents[1][::2]])[:num_heads])


def relative_buckets(
    relative_position: Tensor, *, num_buckets: int, max_distance: int, bidirectional: bool
) -> Tensor:
    """T5's bucket of key − query (arXiv 1910.10683, §2.1, by Mesh TensorFlow's code). long, same shape

    The first half of a direction's buckets hold one distance each, the rest are log-spaced up to
    `max_distance`. The future has buckets of its own, or is in bucket 0 if not `bidirectional`.
    """
    # Borders fall on whole distances, where the rounding of the logarithm decides: in float32 and on
    # the CPU, wherever the model runs.
    position = relative_position.cpu().long()
    num_buckets //= 2 if bidirectional else 1
    distance = position.abs() if bidirectional else (-position).clamp(min=0)
    num_exact = num_buckets // 2
    ratio = distance.clamp(min=num_exact).float() / num_exact
    spaced = torch.log(ratio) / math.log(max_distance / num_exact) * (num_buckets - num_exact)
    far = (num_exact + spaced.long()).clamp(max=num_buckets - 1)
    future = num_buckets * (position > 0) if bidirectional else 0
    return (torch.where(distance < num_exact, distance, far) + future).to(relative_position.device)


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sine and cosine of every pair by turns (arXiv 1706.03762, §3.5), float64. (…) → (…, dim)"""
    frequencies = inverse_frequencies(dim, 10000.0).to(positions.device)
    angles = positions[..., None].double() * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :dim]


def interpolate_rows(table: Tensor, places: Tensor) -> Tensor:
    """Rows of a table between which `places` lie, blended by distance, float64. (rows, dim), (…) → (…, dim)

    At a whole place that very row; beyond the last row the last one.
    """
    last = len(table) - 1
    places = places.double().clamp(max=last)
    below = places.long()
    share = places - below
    rows = (torch.nn.functional.embedding(at, table) for at in (below, (below + 1).clamp(max=last)))
    lower, upper = (row.double() for row in rows)
    return torch.lerp(lower, upper, share[..., None])
