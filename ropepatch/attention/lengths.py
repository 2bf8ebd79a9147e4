"""How many tokens each row of a request will have, told by whoever knows it at the start.

It lives in a context variable: threads and coroutines that share a model do not see each other's.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

_REQUEST: ContextVar[dict[int, Tensor] | None] = ContextVar("ropepatch_request", default=None)
_announcers = 0  # in all threads: nobody has to be asked while there are none
_counting = Lock()


@contextmanager
def request_lengths(site: object, lengths: Tensor) -> Iterator[None]:
    """Within the body, the rows that reach a rotary module or score bias count as `lengths` long. (batch,)"""
    token = _REQUEST.set({**(_REQUEST.get() or {}), id(site): lengths})
    _count(1)
    try:
        yield
    finally:
        _count(-1)
        _REQUEST.reset(token)


def _count(change: int) -> None:
    global _announcers
    with _counting:
        _announcers += change


def anyone_announces() -> bool:
    """Whether lengths are announced in some thread."""
    return _announcers > 0


def requested_lengths(site: object) -> Tensor | None:
    """Tokens in each row of the whole request; None where nobody said. (batch,)"""
    return (_REQUEST.get() or {}).get(id(site)) if _announcers else None


def requested_in_graph(site: object, inputs: Tensor) -> Tensor | None:
    """The same under torch.compile, where 0 tokens say that nobody said. inputs (batch, …) → (batch,)"""
    return _requested(inputs, id(site)) if _announcers else None


# An operator of its own: the compiler does not follow context variables.
@torch.library.custom_op("ropepatch::requested", mutates_args=())
def _requested(inputs: Tensor, site: int) -> Tensor:
    lengths = (_REQUEST.get() or {}).get(site)
    if lengths is None:
        return inputs.new_zeros(len(inputs), dtype=torch.long)
    return by_row(lengths, len(inputs)).to(inputs.device, torch.long, copy=True)


@_requested.register_fake
def _(inputs: Tensor, site: int) -> Tensor:
    return inputs.new_zeros(len(inputs), dtype=torch.long)


def by_row(lengths: Tensor, rows: int) -> Tensor:
    """Lengths for fewer rows than there are repeat row by row, as beams do."""
    return lengths.repeat_interleave(max(rows // len(lengths), 1))


def named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a module's forward, all by name."""
    if not args:  # reading a signature takes as long as a small layer
        return kwargs
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
