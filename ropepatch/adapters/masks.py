"""Attention masks of bias models: one value per key, checked before a layer sees them.

transformers expands a padding mask to a matrix before its layers run. A mask of four dimensions it
passes on as it is; so padding travels as (batch, 1, 1, key), and no padding as a single True.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from ropepatch.attention.lengths import given_cache, named_arguments
from ropepatch.errors import MaskError


@dataclass(eq=False)
class CompactMasks:
    """Hook around the forward of a stack of layers: replaces its attention masks."""

    causal: bool
    counts_tokens: bool = False  #: stock counts distances over tokens alone, as BLOOM does

    def __call__(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: object
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Arguments with masks that are bool and of four dimensions. Raises MaskError."""
        if output:
            return None
        given = dict(named_arguments(stack, args, kwargs))
        inputs = given.get("input_ids")
        inputs = given.get("inputs_embeds") if inputs is None else inputs
        if not isinstance(inputs, Tensor):
            return None  # stock says what is missing
        rows, queries = inputs.shape[:2]
        cache = given_cache(given)
        seen, keys = _cache_sizes(getattr(cache, "self_attention_cache", cache), queries)
        dense = given.get("output_attentions")
        dense = stack.config.output_attentions if dense is None else dense  # type: ignore[union-attr]
        least = keys if isinstance(seen, int) and seen + queries == keys else queries
        mask = _compact(given.get("attention_mask"), rows, queries, (least, keys), inputs.device)
        if self.counts_tokens and mask.shape[2] == 1:
            require_no_gap(mask[:, 0, 0])
        if dense:
            mask = for_every_query(mask, queries, keys, seen, self.causal)
        given["attention_mask"] = mask
        memory = given.get("encoder_hidden_states")
        if memory is not None:
            across = given.get("encoder_attention_mask")
            sizes = (memory.shape[1], memory.shape[1])
            across = _compact(across, rows, queries, sizes, inputs.device)
            if dense:
                across = for_every_query(across, queries, memory.shape[1], 0, causal=False)
            given["encoder_attention_mask"] = across
        return (), given


def _cache_sizes(cache: Cache | None, queries: int) -> tuple[int | Tensor, int]:
    """Tokens in a cache, and keys in all once `queries` are added; empty places of a static cache count."""
    if cache is None:
        return 0, queries
    return cache.get_seq_length(), int(cache.get_mask_sizes(queries, 0)[0])


def _compact(
    mask: object, rows: int, queries: int, sizes: tuple[int, int], device: torch.device
) -> Tensor:
    """A mask as given, as bool of four dimensions. Raises MaskError for what cannot be one.

    `sizes` are the fewest keys that a padding mask may speak of, and all keys: a static cache has more
    places than are taken, and causality hides the rest.
    """
    least, keys = sizes
    if mask is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor):
        raise MaskError(f"the attention mask is a {type(mask).__name__}; allowed: a tensor or None")
    if mask.is_floating_point() or mask.is_complex():
        raise MaskError(
            f"the attention mask is of {mask.dtype}; allowed: bool or whole numbers, 1 for tokens "
            "and 0 for padding; pass mask.bool() if that is what it means"
        )
    shape = tuple(mask.shape)
    if mask.dim() == 2 and shape[0] == rows and least <= shape[1] <= keys:
        return F.pad(mask.bool(), (0, keys - shape[1]), value=False)[:, None, None].to(device)
    rest = shape[1:] in ((1, 1, keys), (1, queries, keys))
    if mask.dim() == 4 and shape[0] in (1, rows) and rest:
        return mask.bool().to(device)
    raise MaskError(
        f"the attention mask has shape {shape}; allowed: ({rows}, {keys}) for {rows} rows of "
        f"{keys} tokens, cached ones included, or (1 or {rows}, 1, {queries}, {keys})"
    )


def require_no_gap(mask: Tensor) -> None:
    """Raise MaskError for padding between tokens of a row, (batch, key): distances would count it."""
    if torch.compiler.is_compiling() or mask.shape[1] < 2:
        return
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum(-1) + mask[:, 0]
    if bool((starts > 1).any()):
        row = int(starts.gt(1).nonzero()[0])
        raise MaskError(
            f"row {row} of the attention mask has padding between tokens, which would count as "
            "distance; pad on the left, so that what is generated follows the prompt"
        )


def for_every_query(
    mask: Tensor, queries: int, keys: int, seen: int | Tensor, causal: bool
) -> Tensor:
    """Which key each query sees, `seen` keys before the first query. (batch or 1, 1, query, key)"""
    mask = mask.expand(-1, -1, queries, keys)
    if not causal:
        return mask
    at = torch.arange(queries, device=mask.device)[:, None] + seen
    return mask & (torch.arange(keys, device=mask.device) <= at)


def padding_mask_for_generate(
    config: object,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    **rest: Any,
) -> Tensor | None:
    """Stands in for a model's `create_masks_for_generate`: the padding mask, as long as a static cache.

    A cache of a window alone is shorter than the text, all of which the mask tells about.
    """
    if attention_mask is None or attention_mask.dim() == 4:
        return attention_mask
    room = given_cache(rest).get_max_length() - attention_mask.shape[-1]
    return F.pad(attention_mask, (0, max(room, 0)))
