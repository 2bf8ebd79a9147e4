"""A score bias fitted to what a checkpoint's own positions do, so that a conversion starts close."""

import math

import torch
from torch import Tensor

from ropepatch.errors import DataError, MethodOptionError
from ropepatch.methods.base import Method
from ropepatch.methods.replacement import HeadGeometry, ScoreBiasMethod

_STEPS = 1000  #: of the optimiser at most; biases have a few parameters for each head
_EVEN = 1e-3  #: weight that does not follow the attention
#: Ends what has no limit: KERPLE follows a head that tells no token from another, but itself, to infinity.
_LARGEST = 1e4


def correlations(query: Tensor, key: Tensor) -> Tensor:
    """Σ q_i·k_j over all pairs at distance i − j = 1 − n … n − 1, float64. (…, n, channels) → (…, 2n − 1)

    By Fourier transforms, so that no matrix of scores is made.
    """
    length = query.shape[-2]
    seen, read = (torch.fft.rfft(states.double(), 2 * length, dim=-2) for states in (query, key))
    sums = torch.fft.irfft((seen * read.conj()).sum(-1), 2 * length, dim=-1)
    return torch.cat([sums[..., length + 1 :], sums[..., :length]], -1)


def require_score_bias(kind: type[Method]) -> None:
    """Raise MethodOptionError unless methods of this kind add a bias to scores."""
    if not issubclass(kind, ScoreBiasMethod):
        raise MethodOptionError(f"{kind.name!r} adds no score bias, so there is nothing to fit")


def require_fit(method: Method) -> None:
    """Raise MethodOptionError unless a bias with these options can be fitted."""
    require_score_bias(type(method))
    geometry = HeadGeometry(original_max_position_embeddings=2048, num_heads=8)  # as good as any
    if isinstance(method, ScoreBiasMethod) and not method.initial(geometry):
        raise MethodOptionError(
            f"{method.name!r} with these options has no parameters, so there is nothing to fit; leave "
            "fit out, or choose slopes='trainable' for 'alibi'"
        )


def fit_bias(
    method: ScoreBiasMethod,
    geometry: HeadGeometry,
    distances: Tensor,
    profile: Tensor,
    pairs: Tensor,
) -> dict[str, Tensor]:
    """Parameters for which the bias of one layer is closest to a profile, float64.

    `profile` (heads, n) are mean scores at `distances` (n,), each of so many `pairs` (n,). With weights w
    that follow the attention, Σ w·(bias − profile − c)² is least; softmax does not see the constant c of
    every head. Raises MethodOptionError for a method in which nothing trains, DataError for scores that
    are not finite.
    """
    require_fit(method)
    if not bool(profile.isfinite().all()):
        raise DataError(
            "scores of the text are not finite, so nothing can be fitted to them; load the model in float32 "
            "or bfloat16, and see that its losses are finite"
        )
    start = method.initial(geometry)
    free = {name: _unbounded(value, *_limits(method, name)) for name, value in start.items()}
    for value in free.values():
        value.requires_grad_(True)
    # Softmax of the profile says how much of the attention is at stake at a distance; the rest, so that
    # every parameter is told something, is spread evenly over orders of magnitude.
    even = pairs / (1 + distances.abs())
    share = (1 - _EVEN) * profile.softmax(-1) + _EVEN * even / even.sum()
    optimiser = torch.optim.LBFGS(
        list(free.values()), max_iter=_STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def bounded() -> dict[str, Tensor]:
        return {name: _bounded(value, *_limits(method, name)) for name, value in free.items()}

    def closure() -> Tensor:
        optimiser.zero_grad()
        rest = method.bias(geometry, distances.double(), bounded()) - profile
        rest = rest - (rest * share).sum(-1, keepdim=True)
        loss: Tensor = (rest.square() * share).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    found = {name: value.detach() for name, value in bounded().items()}
    return method.beyond(geometry, found, int(distances.max()))


def _limits(method: ScoreBiasMethod, name: str) -> tuple[float, float]:
    return method.limits.get(name, (-math.inf, math.inf))


def _unbounded(value: Tensor, low: float, high: float) -> Tensor:
    """A number that may be anything, of which `_bounded` makes one within the limits."""
    if low == -math.inf:
        return value.clone()
    if high == math.inf:
        return (value - low).clamp(min=1e-3).log()
    return ((value - low) / (high - low)).clamp(1e-3, 1 - 1e-3).logit()


def _bounded(value: Tensor, low: float, high: float) -> Tensor:
    if low == -math.inf:
        return value
    if high == math.inf:
        return low + value.clamp(max=math.log(_LARGEST)).exp()
    return low + (high - low) * value.sigmoid()
