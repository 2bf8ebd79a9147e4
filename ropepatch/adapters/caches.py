"""Caches of keys and values: they carry what their rows are scaled for, and are turned when it grows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from ropepatch.adapters.key_turning import KeyTurner
from ropepatch.attention.lengths import (
    anyone_announces,
    by_row,
    named_arguments,
    requested_in_graph,
    requested_lengths,
)
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


class _Call:
    """What a decoder was called with."""

    def __init__(
        self, decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.decoder = decoder
        self.arguments = named_arguments(decoder, args, kwargs)
        given = self.arguments.get("past_key_values")
        # Beside the cache of the decoder's own keys is an encoder's.
        self.cache: Cache | None = getattr(given, "self_attention_cache", given)
        ids: Tensor | None = self.arguments.get("input_ids")
        self.inputs: Tensor = self.arguments["inputs_embeds"] if ids is None else ids
        self.rows: int = self.inputs.shape[0]
        self.new: int = self.inputs.shape[1]
        self.room = _room(self.cache)
        mask = self.arguments.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self.positions: Tensor | None = self.arguments.get("position_ids")

    def cached(self) -> Tokens:
        """Places that are taken in the cache; a static one counts in a tensor."""
        taken: Tokens = 0 if self.cache is None else self.cache.get_seq_length()
        return taken

    def tokens(self, columns: Tokens) -> Tokens:
        """Tokens in each row once the call is done: by mask, by positions, or all alike."""
        if self.mask is not None:
            return self.mask.long().sum(-1).clamp(min=1)
        if self.positions is not None:
            return self.positions.amax(-1) + 1
        if isinstance(columns, Tensor):
            return columns[None]
        # A graph would be made for each number.
        return torch.tensor([columns]) if torch.compiler.is_compiling() else columns

    def may_jump(self) -> bool:
        """Whether rows may grow by more than the new tokens."""
        return self.positions is not None and self.mask is None

    def keeps_keys(self) -> bool:
        """Whether there will be a cache, though it may not have been given one."""
        asked = self.arguments.get("use_cache")
        makes = getattr(self.decoder.config, "use_cache", False) if asked is None else asked
        return self.cache is not None or bool(makes)


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
        call = _Call(decoder, args, kwargs)
        if not output:
            set_row_scales(self.site, self._scales(call))
            return
        scales = row_scales(self.site)
        set_row_scales(self.site, None)
        cache = _made_cache(output[0]) if call.cache is None else call.cache
        if scales is not None and cache is not None and output[0] is not None:  # None: it raised
            if call.room is None:
                scales.append_positions()
            else:
                scales.place_positions(call.cached(), call.room, call.rows)
            _attach(cache, scales)

    def _scales(self, call: _Call) -> RowScales:
        in_graph = torch.compiler.is_compiling()
        cached = call.cached()
        columns = cached + call.new
        old = self._carried(call, cached)
        if old is not None and self._unchanged(old) and _within(call, columns, old.until):
            return old
        announced = (
            requested_in_graph(self.site, call.inputs) if in_graph else requested_lengths(self.site)
        )
        tokens = call.tokens(columns)
        least = tokens
        if announced is None or in_graph:
            least = self._unannounced(call, old, tokens, columns)
        if announced is not None:
            request = larger(by_row(announced, call.rows), tokens)
            # In a graph 0 tokens say that nobody said.
            least = torch.where(announced > 0, request, least) if in_graph else request
        wanted = least if old is None else enough(old.tokens, least, self.method, self.original)
        until = 0
        if call.room is not None:
            until = _ALWAYS
            if not in_graph:
                # The last token that is generated is never read, so it needs no place.
                more = _most(least - tokens) - (announced is not None)
                _require_room(call.room, int(columns) + max(more, 0))
        elif not in_graph:
            until = int(columns) - _most(tokens - wanted)
        if old is not None and not in_graph and old.is_for(wanted):
            old.request, old.until = announced, until
            return old
        scales = RowScales(wanted, self.maker, announced, until)
        if old is not None and call.cache is not None:
            scales.positions = old.positions
            if self.turner is not None:
                self.turner(call.decoder, call.cache, old, scales)
        return scales

    def _unchanged(self, old: RowScales) -> bool:
        """Whether lengths are announced as they were when `old` was made."""
        if torch.compiler.is_compiling():  # which ones cannot be told there: the same, if any
            return (old.request is not None) == anyone_announces()
        return old.request is requested_lengths(self.site)

    def _carried(self, call: _Call, cached: Tokens) -> RowScales | None:
        """What the rows of a cache are scaled for, None if empty. Raises CacheError if it does not fit."""
        scales: RowScales | None = getattr(call.cache, _SCALES, None)
        if isinstance(cached, int):
            if cached == 0:
                return None
            if scales is not None and call.room is None:
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
        if isinstance(scales.tokens, Tensor) and len(scales.tokens) not in (1, call.rows):
            raise CacheError(
                f"the call has {call.rows} rows, but the cache knows the scale of {len(scales.tokens)}; "
                "move its rows with reorder_cache, batch_select_indices or batch_repeat_interleave"
            )
        return scales

    def _unannounced(
        self, call: _Call, old: RowScales | None, tokens: Tokens, columns: Tokens
    ) -> Tokens:
        """What rows need a scale for when nobody said how long they will be."""
        if call.decoder.training:
            return self._in_training(call, tokens)
        if call.room is not None:
            return call.room - columns + tokens
        if old is not None or not call.keeps_keys():
            return tokens
        return enough(0, tokens, self.method, self.original)

    def _in_training(self, call: _Call, tokens: Tokens) -> Tokens:
        if (length := self.method.training_length) is not None:
            if isinstance(tokens, int) and tokens > length:
                raise LengthError(
                    f"rows of {tokens} tokens are longer than training_length ({length})"
                )
            return length
        if call.may_jump():
            raise LengthError(
                "position_ids without a 2-D attention_mask do not tell how long rows are in training: "
                "packing and context parallelism hand over parts of them; patch with training_length=, "
                f"the tokens that {self.method.name!r} is to scale for"
            )
        return tokens


def _made_cache(output: Any) -> Cache | None:
    """The cache that a call without one has made."""
    parts = output.values() if isinstance(output, dict) else output
    made = next((part for part in parts or () if isinstance(part, Cache)), None)
    return getattr(made, "self_attention_cache", made)


def _within(call: _Call, columns: Tokens, until: int) -> bool:
    """Whether no row can have outgrown its scale."""
    return until == _ALWAYS or (not call.may_jump() and bool(columns <= until))


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
