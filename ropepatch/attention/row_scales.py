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

from ropepatch.methods.base import RotaryFrequencies

# Channels that turn together: (i, i + dim/2) or (2i, 2i + 1).
Pairing = Literal["halves", "interleaved"]
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)
Made = TypeVar("Made")


@dataclass(eq=False)
class RowScales:
    """What the rows of one request are scaled for."""

    tokens: Tensor  #: (rows,), or (1,) for all of them
    maker: object = None  #: the method and the checkpoint's geometry, equal for caches that fit
    request: Tensor | None = None  #: lengths announced when this was made
    until: int = 0  #: cached tokens up to which no row outgrows its scale
    positions: Tensor | None = None  #: of the cached keys, (rows or 1, cached)
    called_at: Tensor | None = None  #: positions of this call's keys, (rows or 1, n)
    made: dict[object, Any] = field(default_factory=dict)  #: what was computed from `tokens`

    def is_for(self, tokens: Tensor) -> Tensor:
        """Whether every row is scaled for just so many tokens. ()"""
        return (self.tokens == tokens).all()

    def once(self, key: object, make: Callable[[Tensor], Made]) -> Made:
        """What `make` makes of the tokens, computed at the first call only."""
        if key not in self.made:
            self.made[key] = make(self.tokens)
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

    def place_positions(self, cached: int | Tensor, room: int, rows: int) -> None:
        """The same for a cache of `room` places, `cached` of them taken now: no shape changes."""
        if self.called_at is None:
            return
        new = self.called_at.to(torch.int32).expand(rows, -1)
        if self.positions is None:
            self.positions = new.new_zeros(rows, room)
            if not torch.compiler.is_compiling():
                torch._dynamo.mark_static_address(self.positions)  # as its keys, for CUDA graphs
        places = torch.arange(-new.shape[1], 0, device=new.device) + cached
        self.positions.index_copy_(1, places, new)
        self.called_at = None

    def follow(self, move: Callable[[Tensor], Tensor]) -> None:
        """Move the rows as those of the cache are moved."""
        if len(self.tokens) > 1:
            self.tokens = move(self.tokens)
        if self.positions is not None and len(self.positions) > 1:
            self.positions = move(self.positions)
        self.made = {}


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


# A branch within the graph of torch.compile.
@torch.library.custom_op(
    "ropepatch::turn_if", mutates_args={"keys"}, tags=(torch.Tag.cudagraph_unsafe,)
)
def turn_if(
    outgrown: Tensor,
    keys: Tensor,
    positions: Tensor,
    old: Tensor,
    old_factor: Tensor,
    new: Tensor,
    new_factor: Tensor,
    pairing: str,
) -> None:
    """`turned` in place, if `outgrown` says so."""
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
    if torch.compiler.is_compiling() and site.traced_scales is not None:
        return site.traced_scales
    live = (_CALL.get() or {}).get(id(site))
    return site.traced_scales if live is None else live  # the latter after a break of a graph
