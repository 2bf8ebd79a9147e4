"""How many tokens each row of a request will have, told by whoever knows it at the start.

It lives in a context variable: threads and coroutines that share a model do not see each other's.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

_REQUEST: ContextVar[dict[int, Tensor] | None] = ContextVar("ropepatch_request", default=None)
_announcers = 0  # in all threads


@contextmanager
def request_lengths(site: object, lengths: Tensor) -> Iterator[None]:
    """Within the body, the rows that reach a rotary module or score bias count as `lengths` long. (batch,)"""
    global _announcers
    token = _REQUEST.set({**(_REQUEST.get() or {}), id(site): lengths})
    _announcers += 1
    try:
        yield
    finally:
        _announcers -= 1
        _REQUEST.reset(token)


def requested_lengths(site: object) -> Tensor | None:
    """Tokens in each row of the whole request; None where nobody said. (batch,)"""
    # A context variable breaks the graph of torch.compile; so it is not asked when there is no need.
    return (_REQUEST.get() or {}).get(id(site)) if _announcers else None


def named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a module's forward, all by name."""
    if not args:  # reading a signature takes as long as a small layer
        return kwargs
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
