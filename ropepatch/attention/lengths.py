"""How many tokens each row of a request will have, told by whoever knows it at the start.

It lives in a context variable: threads and coroutines that share a model do not see each other's.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ropepatch.errors import LengthError

_REQUEST: ContextVar[dict[int, Tensor] | None] = ContextVar("ropepatch_request", default=None)
_announcers = 0  # in all threads: nobody has to be asked while there are none
_counting = Lock()


@contextmanager
def request_lengths(sites: Iterable[object], lengths: Tensor) -> Iterator[None]:
    """Within the body, rows that reach rotary modules or score biases count as `lengths` long. (batch,)"""
    token = _REQUEST.set({**(_REQUEST.get() or {}), **dict.fromkeys(map(id, sites), lengths)})
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


def requested_lengths(site: object, inputs: Tensor) -> Tensor | None:
    """Tokens in each row of the whole request; None where nobody said. inputs (batch, …) → (batch,)

    Under torch.compile 0 tokens say that nobody said, though somebody may have in another thread.
    """
    if not anyone_announces():
        return None
    if torch.compiler.is_compiling():
        lengths: Tensor = _requested(inputs, id(site))
        return lengths
    return (_REQUEST.get() or {}).get(id(site))


# An operator of its own: the compiler does not follow context variables.
@torch.library.custom_op(
    "ropepatch::requested", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _requested(inputs: Tensor, site: int) -> Tensor:
    lengths = (_REQUEST.get() or {}).get(site)
    if lengths is None:
        return inputs.new_zeros(len(inputs), dtype=torch.long)
    return by_row(lengths, inputs).clone()


@_requested.register_fake
def _(inputs: Tensor, site: int) -> Tensor:
    return inputs.new_zeros(len(inputs), dtype=torch.long)


def by_row(lengths: Tensor, inputs: Tensor) -> Tensor:
    """Lengths where inputs (batch, …) are; those of fewer rows repeat row by row, as beams do."""
    if len(inputs) % len(lengths):
        raise LengthError(
            f"generate or planned_length announced how long {len(lengths)} rows get, but this call has "
            f"{len(inputs)}; plan one number for all of them, or one for each"
        )
    repeats = len(inputs) // len(lengths)
    return lengths.to(inputs.device, torch.long).repeat_interleave(repeats)


def named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a module's forward, all by name."""
    if not args:  # reading a signature takes as long as a small layer
        return kwargs
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Key–value cache of a call, or None; transformers 5.24 renamed `past_key_values` to `cache`."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache
