"""For how many tokens every row is scaled, from the start of its cache to the end.

Cached keys keep the rotation with which they were written, so a row's scale must not change from
call to call. It is chosen when a cache starts, for the whole request where that is known, else for a
bucket of lengths, and travels with the cache. A row that outgrows it gets its keys rotated on to the
next one (`turned`).

Encodings that show cached keys at other positions (windows, sinks, two-level positions) are small
additions here: they read `positions` and turn keys by angles of their own.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from ropepatch.methods.base import LengthDependent, RotaryFrequencies

Tokens = int | Tensor  #: of every row, (rows,), or one number for all of them
# Channels that turn together: (i, i + dim/2) or (2i, 2i + 1).
Pairing = Literal["halves", "interleaved"]
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)
Made = TypeVar("Made")


@dataclass(eq=False)
class RowScales:
    """What the rows of one request are scaled for."""

    tokens: Tokens
    maker: object = None  #: the method and the checkpoint's geometry, equal for caches that fit
    request: Tensor | None = None  #: lengths announced when this was made
    until: int = 0  #: cached tokens up to which no row outgrows its scale
    positions: Tensor | None = None  #: of the cached keys, (rows or 1, cached)
    called_at: Tensor | None = None  #: positions of this call's keys, (rows or 1, n)
    made: dict[object, Any] = field(default_factory=dict)  #: what was computed from `tokens`

    def is_for(self, tokens: Tokens) -> Tensor:
        """Whether every row is scaled for just so many tokens. ()"""
        return (torch.as_tensor(self.tokens) == torch.as_tensor(tokens)).all()

    def once(self, key: object, make: Callable[[Tensor], Made]) -> Made:
        """What `make` makes of the tokens, (rows or 1,), computed at the first call only."""
        if key not in self.made:
            tokens = self.tokens
            rows = tokens if isinstance(tokens, Tensor) else torch.tensor([tokens])
            self.made[key] = make(rows)
        made: Made = self.made[key]
        return made

    def keep_positions(self, cached: int) -> None:
        """Forget positions beyond `cached` tokens: the cache was cropped."""
        if self.positions is not None:
            self.positions = self.positions[:, :cached]

    def append_positions(self) -> None:
        """After a call: its keys are in the cache."""
        if self.called_at is None:
            return
        new = self.called_at.to(torch.int32)
        if self.positions is not None:
            rows = max(len(self.positions), len(new))
            new = torch.cat((self.positions.expand(rows, -1), new.expand(rows, -1)), -1)
        self.positions, self.called_at = new, None

    def place_positions(self, cached: Tokens, room: int, rows: int) -> None:
        """The same for a cache of `room` places, `cached` of them taken now: no shape changes."""
        if self.called_at is None:
            return
        new = self.called_at.to(torch.int32).expand(rows, -1)
        if self.positions is None:
            self.positions = new.new_zeros(rows, room)
            if not torch.compiler.is_compiling():
                torch._dynamo.mark_static_address(self.positions)  # as its keys, for CUDA graphs
        self.positions.index_copy_(
            1, torch.arange(-new.shape[1], 0, device=new.device) + cached, new
        )
        self.called_at = None

    def follow(self, move: Callable[[Tensor], Tensor]) -> None:
        """Move the rows as those of the cache are moved."""
        if isinstance(self.tokens, Tensor) and len(self.tokens) > 1:
            self.tokens = move(self.tokens)
        if self.positions is not None and len(self.positions) > 1:
            self.positions = move(self.positions)
        self.made = {}


def larger(some: Tokens, others: Tokens) -> Tokens:
    """The larger number of tokens, row by row."""
    if isinstance(some, int) and isinstance(others, int):
        return max(some, others)
    some, others = _alike(some, others)
    return torch.maximum(some, others)


def _alike(some: Tokens, others: Tokens) -> tuple[Tensor, Tensor]:
    """Both as tensors where the one is that is a tensor."""
    device = next(one.device for one in (some, others) if isinstance(one, Tensor))
    return torch.as_tensor(some, device=device), torch.as_tensor(others, device=device)


def enough(floor: Tokens, tokens: Tokens, method: LengthDependent, original: int) -> Tokens:
    """`floor`, or for rows that have more tokens the bucket of those."""
    if isinstance(tokens, int) and isinstance(floor, int):
        return floor if tokens <= floor else method.bucket(tokens, original)
    low, have = _alike(floor, tokens)
    return torch.where(have > low, method.bucket(have, original), low)


def turned(
    keys: Tensor,
    positions: Tensor,
    old: RotaryFrequencies,
    new: RotaryFrequencies,
    pairing: Pairing,
) -> Tensor:
    """Keys that were rotated by `old` frequencies as if by `new` ones, attention factors included.

    keys (rows, heads, n, head_dim), of which the first `dim` are rotary; positions (rows or 1, n);
    frequencies (rows or 1, dim/2).
    """
    change = (new.inv_freq - old.inv_freq)[:, None]
    angles = positions[..., None].to(change.device).double() * change
    ratio = torch.as_tensor(new.attention_factor / old.attention_factor)
    ratio = ratio.expand(len(angles))[:, None, None]
    work = torch.promote_types(keys.dtype, torch.float32)
    cos, sin = (
        (part * ratio)[:, None].to(keys.device, work) for part in (angles.cos(), angles.sin())
    )
    dim = 2 * angles.shape[-1]
    axes = (2, -1) if pairing == "halves" else (-1, 2)
    pairs = keys[..., :dim].to(work).unflatten(-1, axes)
    first, second = pairs.unbind(axes.index(2) - 2)
    rotated = torch.stack(
        (first * cos - second * sin, second * cos + first * sin), axes.index(2) - 2
    )
    return torch.cat((rotated.flatten(-2).to(keys.dtype), keys[..., dim:]), -1)


def turn_if(
    outgrown: Tensor,
    keys: Tensor,
    positions: Tensor,
    old: RotaryFrequencies,
    new: RotaryFrequencies,
    pairing: Pairing,
) -> None:
    """`turned` in place, if `outgrown` says so: a branch within the graph of torch.compile."""
    factors = (torch.as_tensor(old.attention_factor), torch.as_tensor(new.attention_factor))
    _turn_if(outgrown, keys, positions, old.inv_freq, new.inv_freq, *factors, pairing)


@torch.library.custom_op(
    "ropepatch::turn_if", mutates_args={"keys"}, tags=(torch.Tag.cudagraph_unsafe,)
)
def _turn_if(
    outgrown: Tensor,
    keys: Tensor,
    positions: Tensor,
    old: Tensor,
    new: Tensor,
    old_factor: Tensor,
    new_factor: Tensor,
    pairing: str,
) -> None:
    if outgrown:
        before, after = RotaryFrequencies(old, old_factor), RotaryFrequencies(new, new_factor)
        keys.copy_(turned(keys, positions, before, after, cast(Pairing, pairing)))


_CALL: ContextVar[dict[int, RowScales | None] | None] = ContextVar(
    "ropepatch_row_scales", default=None
)


class Scaled:
    """Base of what rows pass through when they are scaled: rotary modules and score biases."""

    traced_scales: RowScales | None = None  # of the call that torch.compile traces


def set_row_scales(site: Scaled, scales: RowScales | None) -> None:
    """From here on the rows that reach `site` are scaled so."""
    if torch.compiler.is_compiling():
        # A context variable would break the graph. Within one, no other thread sees the attribute.
        site.traced_scales = scales
        return
    live = {**(_CALL.get() or {}), id(site): scales}
    if scales is None:
        del live[id(site)]
    _CALL.set(live)


def row_scales(site: Scaled) -> RowScales | None:
    """What the rows of the call under way are scaled for; None where nobody said."""
    if site.traced_scales is not None:
        return site.traced_scales
    return (_CALL.get() or {}).get(id(site))
