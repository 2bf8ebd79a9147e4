"""How many tokens each row of a batch has, told to what scales positions by the call that knows.

A rotary module sees positions only, and under padding the largest position of a row is not its
length. So whoever sees the attention mask announces the lengths. They live in context variables:
threads and coroutines that share a model do not see each other's.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Lengths = dict[int, Tensor | None]  # id of the rotary module or score bias → (batch,)

_REQUEST: ContextVar[Lengths | None] = ContextVar("ropepatch_request_lengths", default=None)
_CALL: ContextVar[Lengths | None] = ContextVar("ropepatch_call_lengths", default=None)


@contextmanager
def request_lengths(site: object, lengths: Tensor) -> Iterator[None]:
    """Within the body, the rows that reach a rotary module or score bias count as `lengths` long. (batch,)"""
    token = _REQUEST.set({**(_REQUEST.get() or {}), id(site): lengths})
    try:
        yield
    finally:
        _REQUEST.reset(token)


def announced_lengths(site: object, rows: int) -> Tensor | None:
    """Tokens in each row of the whole request, or of this call; None where nobody said. (rows,)

    Lengths for fewer rows than there are repeat row by row, as beams do.
    """
    for announced in (_REQUEST.get(), _CALL.get()):
        lengths = (announced or {}).get(id(site))
        if lengths is not None:
            return lengths.repeat_interleave(max(rows // lengths.shape[0], 1))
    return None


def row_lengths(rotary: nn.Module, position_ids: Tensor) -> Tensor:
    """Tokens in each row: as announced, else by the largest position. (positions, n) → (batch,)"""
    lengths = announced_lengths(rotary, position_ids.shape[0])
    return position_ids.amax(-1) + 1 if lengths is None else lengths.to(position_ids.device)


def named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a module's forward, all by name."""
    if not args:  # reading a signature takes as long as a small layer
        return kwargs
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


class AnnounceCallLengths:
    """Hook around a decoder's forward: tells its rotary module the row lengths of the call."""

    def __init__(self, rotary: nn.Module) -> None:
        self.rotary = rotary

    def __call__(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: object
    ) -> None:
        # After the call they hold no more.
        lengths = None if output else _call_lengths(named_arguments(decoder, args, kwargs))
        _CALL.set({**(_CALL.get() or {}), id(self.rotary): lengths})


def _call_lengths(arguments: dict[str, Any]) -> Tensor | None:
    """Tokens in each row of one forward call, cached ones included. (batch,) or None: see positions.

    A 2-D mask covers cached and new tokens. Without one, all rows are as long as cache and input.
    """
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.long().sum(-1).clamp(min=1)
    inputs = arguments.get("input_ids")
    inputs = arguments.get("inputs_embeds") if inputs is None else inputs
    if arguments.get("position_ids") is not None or not isinstance(inputs, Tensor):
        return None
    cache = arguments.get("past_key_values")
    cached = 0 if cache is None else cache.get_seq_length()
    return torch.full((inputs.shape[0],), inputs.shape[1], device=inputs.device) + cached
