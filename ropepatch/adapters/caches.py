"""Caches of keys and values: they carry what their rows are scaled for, and are turned when it grows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from ropepatch.adapters.key_turning import KeyTurner
from ropepatch.attention.lengths import named_arguments, requested_lengths
from ropepatch.attention.rotary import RotarySite, ScaledRotary
from ropepatch.attention.row_scales import (
    RowScales,
    Tokens,
    enough,
    larger,
    row_scales,
    set_row_scales,
)
from ropepatch.attention.score_bias import AlibiBias
from ropepatch.errors import CacheError, LengthError
from ropepatch.methods.base import LengthDependent

_SCALES = "_ropepatch_scales"  # attribute of a cache
_ALWAYS = 1 << 60

_MOVES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "reorder_cache": lambda rows, beams: rows.index_select(0, beams.to(rows.device)),
    "batch_select_indices": lambda rows, indices: rows[indices],
    "batch_repeat_interleave": lambda rows, repeats: rows.repeat_interleave(repeats, 0),
}


class _Followed:
    """Stands in for a method of one cache that moves its rows: their scales move along."""

    def __init__(self, cache: Cache, name: str) -> None:
        self.cache, self.name = cache, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = getattr(type(self.cache), self.name)(self.cache, *args, **kwargs)
        if self.name == "reset":
            vars(self.cache).pop(_SCALES, None)
        elif (scales := getattr(self.cache, _SCALES, None)) is not None:
            (by,) = (*args, *kwargs.values())
            scales.follow(lambda rows: _MOVES[self.name](rows, by))
        return result


def _attach(cache: Cache, scales: RowScales) -> None:
    """Keep the scales in the cache, whatever happens to its rows."""
    setattr(cache, _SCALES, scales)
    for name in ("reset", *_MOVES):
        if name not in vars(cache) and hasattr(cache, name):
            setattr(cache, name, _Followed(cache, name))


class ScaleRows:
    """Hook around a decoder's forward: settles what every row of the call is scaled for."""

    def __init__(self, site: ScaledRotary | AlibiBias) -> None:
        self.site = site
        scaled: list[RotarySite | AlibiBias] = [site] if isinstance(site, AlibiBias) else []
        self.turner: KeyTurner | None = None
        if isinstance(site, ScaledRotary):
            scaled = [each for each in site.sites.values() if each.per_row]
            self.turner = KeyTurner(site)
        # Caches fit whatever has the same method and geometry, in this process or another.
        self.maker = [(each.method, each.geometry) for each in scaled]
        method = scaled[0].method
        assert isinstance(method, LengthDependent)
        self.method = method
        self.original = scaled[0].geometry.original_max_position_embeddings

    def __call__(
        self, decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any
    ) -> None:
        arguments = named_arguments(decoder, args, kwargs)
        if not output:
            set_row_scales(self.site, self._scales(decoder, arguments))
            return
        scales = row_scales(self.site)
        set_row_scales(self.site, None)
        cache = _cache(arguments)
        cache = _made_cache(output[0]) if cache is None else cache
        if scales is not None and cache is not None and output[0] is not None:  # None: it raised
            scales.append_positions()
            _attach(cache, scales)

    def _scales(self, decoder: PreTrainedModel, arguments: dict[str, Any]) -> RowScales:
        cache = _cache(arguments)
        rows, new = _shape(arguments)
        cached = 0 if cache is None else cache.get_seq_length()
        announced = requested_lengths(self.site)
        old = None if cache is None else self._carried(cache, cached, rows)
        same = torch.compiler.is_compiling() or (old is not None and old.request is announced)
        if old is not None and same and _within(cached, new, old.until):
            return old
        tokens = _tokens(arguments, cached, new)
        request = tokens if announced is None else larger(_by_row(announced, rows), tokens)
        if old is not None:
            wanted = enough(old.tokens, request, self.method, self.original)
        elif announced is not None:
            wanted = request
        else:
            wanted = self._unannounced(decoder, arguments, tokens, new)
        scales = RowScales(wanted, self.maker, announced)
        room = _room(cache)
        if room is not None and not torch.compiler.is_compiling():
            # The last token that is generated is never read, so it needs no place.
            more = _most(request - tokens) - (announced is not None)
            _require_room(room, int(cached) + new + max(more, 0))
        scales.until = _ALWAYS if room is not None else cached + new - _most(tokens - wanted)
        if old is not None:
            scales.positions = old.positions
            if self.turner is not None:
                self.turner(decoder, cache, old, scales)
        return scales

    def _carried(self, cache: Cache, cached: Tokens, rows: int) -> RowScales | None:
        """What the rows of a cache are scaled for, None if empty. Raises CacheError if it does not fit."""
        scales: RowScales | None = getattr(cache, _SCALES, None)
        if isinstance(cached, int):
            if cached == 0:
                return None
            if scales is not None:
                scales.keep_positions(cached)
        elif scales is None and (torch.compiler.is_compiling() or not int(cached)):
            return None
        if scales is None:
            raise CacheError(
                f"the cache holds {int(cached)} tokens of a model without this patch, whose keys are "
                "scaled otherwise; start with an empty cache"
            )
        if scales.maker != self.maker:
            raise CacheError(
                f"the cache was filled under another patch, {scales.maker}; this one is {self.maker}; "
                "start with an empty cache"
            )
        if isinstance(scales.tokens, Tensor) and len(scales.tokens) not in (1, rows):
            raise CacheError(
                f"the call has {rows} rows, but the cache knows the scale of {len(scales.tokens)}; "
                "move its rows with reorder_cache, batch_select_indices or batch_repeat_interleave"
            )
        return scales

    def _unannounced(
        self, decoder: PreTrainedModel, arguments: dict[str, Any], tokens: Tokens, new: int
    ) -> Tokens:
        """What rows are scaled for when nobody said how long they will be."""
        cache = _cache(arguments)
        if decoder.training:
            return self._in_training(arguments, tokens)
        if (room := _room(cache)) is not None:
            return room - new + tokens
        if cache is None and not _uses_cache(decoder, arguments):
            return tokens
        return enough(0, tokens, self.method, self.original)

    def _in_training(self, arguments: dict[str, Any], tokens: Tokens) -> Tokens:
        if (length := self.method.training_length) is not None:
            if isinstance(tokens, int) and tokens > length:
                raise LengthError(
                    f"rows of {tokens} tokens are longer than training_length ({length})"
                )
            return length
        if arguments.get("position_ids") is not None and _padding(arguments) is None:
            raise LengthError(
                "position_ids without a 2-D attention_mask do not tell how long rows are in training: "
                "packing and context parallelism hand over parts of them; patch with training_length=, "
                f"the tokens that {self.method.name!r} is to scale for"
            )
        return tokens


def _cache(arguments: dict[str, Any]) -> Cache | None:
    """The cache of the decoder's own keys that a call was given."""
    given = arguments.get("past_key_values")
    return getattr(given, "self_attention_cache", given)  # beside it, an encoder's


def _made_cache(output: Any) -> Cache | None:
    """The cache that a call without one has made."""
    parts = output.values() if isinstance(output, dict) else output
    made = next((part for part in parts or () if isinstance(part, Cache)), None)
    return getattr(made, "self_attention_cache", made)


def _shape(arguments: dict[str, Any]) -> tuple[int, int]:
    """Rows and new tokens of a call."""
    inputs = arguments.get("input_ids")
    inputs = arguments["inputs_embeds"] if inputs is None else inputs
    return inputs.shape[0], inputs.shape[1]


def _padding(arguments: dict[str, Any]) -> Tensor | None:
    mask = arguments.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _tokens(arguments: dict[str, Any], cached: Tokens, new: int) -> Tokens:
    """Tokens in each row once a call is done, cached ones included: by mask, by positions, or all alike."""
    if (mask := _padding(arguments)) is not None:
        return mask.long().sum(-1).clamp(min=1)
    positions: Tensor | None = arguments.get("position_ids")
    if positions is not None:
        return positions.amax(-1) + 1
    return cached + new if isinstance(cached, int) else cached[None] + new


def _by_row(lengths: Tensor, rows: int) -> Tensor:
    """Lengths for fewer rows than there are repeat row by row, as beams do."""
    return lengths.repeat_interleave(max(rows // len(lengths), 1))


def _within(cached: Tokens, new: int, until: int) -> bool:
    """Whether no row can have outgrown its scale."""
    return until == _ALWAYS or bool(cached + new <= until)


def _most(tokens: Tokens) -> int:
    return int(tokens.max()) if isinstance(tokens, Tensor) else tokens


def _room(cache: Cache | None) -> int | None:
    """Places of a cache that cannot grow, None for one that can."""
    layers = [] if cache is None else cache.layers
    rooms = [layer.max_cache_len for layer in layers if type(layer) is StaticLayer]
    return max(rooms) if rooms else None


def _require_room(room: int, needed: int) -> None:
    if needed > room:
        raise LengthError(
            f"the request needs {needed} places in its cache, padding included, but the StaticCache "
            f"has {room}; make it with max_cache_len={needed} or ask for less"
        )


def _uses_cache(decoder: PreTrainedModel, arguments: dict[str, Any]) -> bool:
    """Whether a call without a cache makes one."""
    asked = arguments.get("use_cache")
    return bool(getattr(decoder.config, "use_cache", False) if asked is None else asked)
