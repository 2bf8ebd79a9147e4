"""Masks of models whose attention goes through transformers' interface: one value for each key."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import sdpa_mask

from ropepatch.adapters.masks import for_every_query
from ropepatch.errors import MaskError


@dataclass(frozen=True)
class KeyMask:
    """Which keys queries see, without a matrix."""

    padding: Tensor | None  #: bool (batch, key), False for padding
    starts: Tensor | None  #: bool (batch, query): the first token of every packed document
    offset: int | Tensor  #: keys before the first query

    def to(self, *args: Any, **kwargs: Any) -> "KeyMask":
        """On another device, as accelerate moves what is passed between devices."""
        moved = [
            each.to(*args, **kwargs) if isinstance(each, Tensor) else each
            for each in vars(self).values()
        ]
        return KeyMask(*moved)


def make_key_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Any],
    device: torch.device,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **rest: Any,
) -> KeyMask | Tensor | None:
    """What transformers' masks say, for our attention; a matrix for masks that a caller has made up."""
    if use_vmap:
        matrix: Tensor | None = sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=int(q_offset),
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            use_vmap=True,
            device=device,
            **rest,
        )
        return matrix
    starts = None
    if attention_mask is None and not allow_is_causal_skip and q_length == kv_length > 1:
        starts = _document_starts(mask_function, batch_size, q_length, device)
    if attention_mask is not None:
        missing = kv_offset + kv_length - attention_mask.shape[-1]
        attention_mask = F.pad(attention_mask.bool(), (0, max(missing, 0)))
        attention_mask = attention_mask[:, kv_offset : kv_offset + kv_length]
    return KeyMask(attention_mask, starts, q_offset - kv_offset)


def _document_starts(
    mask_function: Callable[..., Any], rows: int, length: int, device: torch.device
) -> Tensor | None:
    """Tokens that do not see the one before them, (batch, query); None where each does."""
    row = torch.arange(rows, device=device)[:, None]
    place = torch.arange(length, device=device)[None]
    seen = mask_function(row, torch.zeros_like(row), place, (place - 1).clamp(min=0))
    starts = ~seen.expand(rows, length)
    return starts if bool(starts.any()) else None


def read_mask(
    mask: KeyMask | Tensor | None, query: Tensor, key: Tensor
) -> tuple[int | Tensor, Tensor | None]:
    """Keys before the first query, and which keys are seen, bool (batch or 1, 1, 1 or query, key)."""
    if isinstance(mask, KeyMask):
        return mask.offset, None if mask.padding is None else mask.padding[:, None, None]
    if mask is not None and mask.dtype != torch.bool:
        raise MaskError(
            f"the attention mask is of {mask.dtype} and shape {tuple(mask.shape)}; allowed: (batch, "
            "tokens), 1 for tokens and 0 for padding, or bool (batch, 1, query, key)"
        )
    return key.shape[2] - query.shape[2], mask


def whole_mask(mask: KeyMask | Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """A mask that tells all, for which probabilities are computed. (batch or 1, 1, query, key)"""
    offset, seen = read_mask(mask, query, key)
    if seen is not None and seen.shape[2] > 1:
        return seen
    if seen is None:
        seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=query.device)
    if isinstance(mask, KeyMask) and mask.starts is not None:
        document = mask.starts.cumsum(-1)
        seen = seen & (document[:, None, :, None] == document[:, None, None])
    return for_every_query(seen, query.shape[2], key.shape[2], offset, causal)
