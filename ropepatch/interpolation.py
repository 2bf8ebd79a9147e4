"""Rotary scores within, between and past the positions of training (arXiv 2306.15595, §2.3).

A score of one query and one key is Re Σ_j h_j·e^(𝑖·D·θ_j) at distance D: the `coefficients` h_j,
complex, (dim/2,), are the products of their pairs of channels.
"""

import torch
from torch import Tensor

from ropepatch.positions import decay_bound

_MOST_POSITIONS = 8192  #: that are fitted; more of them change nothing that is seen
#: Singular values below this share of the largest are dropped: as many as normal equations resolve in
#: float64. All of them would make what is seen past the fit a matter of rounding.
_RESOLVED = 1e-8


def scores(coefficients: Tensor, inv_freq: Tensor, distances: Tensor) -> Tensor:
    """Scores at distances, whole or not. (dim/2,), (dim/2,), (n,) → (n,)"""
    return _waves(inv_freq, distances) @ torch.cat((coefficients.real, -coefficients.imag))


def fit_scores(inv_freq: Tensor, length: int, *, seed: int = 0) -> Tensor:
    """Coefficients whose scores are nearest to random ones at distances below `length` (Fig. 2)."""
    generator = torch.Generator().manual_seed(seed)
    distances = torch.randperm(length, generator=generator)[:_MOST_POSITIONS]
    wanted = torch.randn(len(distances), 1, generator=generator, dtype=torch.float64)
    waves = _waves(inv_freq, distances)
    fitted = torch.linalg.lstsq(waves, wanted, rcond=_RESOLVED, driver="gelsd").solution[:, 0]
    cosines, sines = fitted.chunk(2)
    return torch.complex(cosines, -sines)


def interpolation_bound(coefficients: Tensor, inv_freq: Tensor, distances: Tensor) -> Tensor:
    """How far a score may be from the straight line between its neighbours at whole distances. (n,) → (n,)

    max|h|·Σθ²·(s−s1)(s2−s)/2. Theorem 2.1 has d/(4 ln base) for Σθ², which is less by about 1/2: equal
    coefficients of 128 channels pass that at distance 1/2, with 0.459 against 0.434.
    """
    after = distances - distances.floor()
    return coefficients.abs().max() * (inv_freq**2).sum() * after * (1 - after) / 2


def extrapolation_bound(coefficients: Tensor, inv_freq: Tensor, distances: Tensor) -> Tensor:
    """How large a score may be at any distance: max|h_{j+1}−h_j|·Σ|A_{k+1}| (eq. 8). (n,) → (n,)"""
    steps = torch.cat((coefficients[1:], coefficients.new_zeros(1))) - coefficients
    return steps.abs().max() * len(inv_freq) * decay_bound(inv_freq, distances)


def _waves(inv_freq: Tensor, distances: Tensor) -> Tensor:
    """Cosines, then sines, of all pairs. (n,) → (n, dim)"""
    angles = distances[:, None].double() * inv_freq
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
