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
    given_cache,
    named_arguments,
    requested_lengths,
)
from ropepatch.attention.rotary import RotarySite, ScaledRotary
from ropepatch.attention.row_scales import RowScales, row_scales, set_row_scales
from ropepatch.attention.score_bias import AlibiBias
from ropepatch.errors import CacheError, LengthError
from ropepatch.methods.base import LengthDependent

_SCALES = "_ropepatch_scales"  # attribute of a cache

_MOVES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "reorder_cache": lambda rows, beams: rows.index_select(0, beams.to(rows.device)),
    "batch_select_indices": lambda rows, indices: rows[indices],
    "batch_repeat_interleave": lambda rows, repeats: rows.repeat_interleave(repeats, 0),
}


class _Followed:
    """Stands in for a method of one cache that moves its rows or drops keys: their scales follow."""

    def __init__(self, cache: Cache, name: str) -> None:
        self.cache, self.name = cache, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = getattr(type(self.cache), self.name)(self.cache, *args, **kwargs)
        scales = getattr(self.cache, _SCALES, None)
        if self.name == "reset":
            vars(self.cache).pop(_SCALES, None)
        elif scales is not None and self.name == "crop":
            scales.until = 0  # what was dropped may have been padding
        elif scales is not None:
            (by,) = (*args, *kwargs.values())
            scales.follow(lambda rows: _MOVES[self.name](rows, by))
        return result


def _attach(cache: Cache, scales: RowScales) -> None:
    """Keep the scales in the cache, whatever happens to its rows."""
    setattr(cache, _SCALES, scales)
    for name in ("reset", "crop", *_MOVES):
        if name not in vars(cache) and hasattr(cache, name):
            setattr(cache, name, _Followed(cache, name))


class _Call:
    """What a decoder was called with."""

    def __init__(self, decoder: PreTrainedModel, arguments: dict[str, Any], inputs: Tensor) -> None:
        self.decoder, self.arguments, self.inputs = decoder, arguments, inputs
        given = given_cache(arguments)
        # Beside the cache of the decoder's own keys is an encoder's.
        self.cache: Cache | None = getattr(given, "self_attention_cache", given)
        self.rows, self.new = inputs.shape[:2]
        layers = [] if self.cache is None else self.cache.layers
        rooms = [layer.max_cache_len for layer in layers if type(layer) is StaticLayer]
        self.room: int | None = max(rooms, default=None)  #: places of a cache that cannot grow
        mask = arguments.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self.positions: Tensor | None = arguments.get("position_ids")
        #: whether rows may grow by more than the new tokens
        self.may_jump = self.positions is not None and self.mask is None

    def cached(self) -> int | Tensor:
        """Places that are taken in the cache; a static one counts in a tensor."""
        taken: int | Tensor = 0 if self.cache is None else self.cache.get_seq_length()
        return taken

    def tokens(self, columns: int | Tensor) -> Tensor:
        """Tokens in each row once the call is done, by mask, by positions, or all alike. (rows or 1,)"""
        if self.mask is not None:
            return self.mask.long().sum(-1).clamp(min=1)
        if self.positions is not None:
            return self.positions.amax(-1) + 1
        return self.inputs.new_zeros(1, dtype=torch.long) + columns

    def is_part(self, tokens: Tensor) -> bool:
        """Whether rows have positions that the mask does not reach: it is sharded as they are."""
        if self.mask is None or self.positions is None or torch.compiler.is_compiling():
            return False
        seen = self.mask[:, -self.new :].bool()
        return bool(((self.positions >= tokens[:, None]) & seen).any())

    def keeps_keys(self) -> bool:
        """Whether there will be a cache, though it may not have been given one."""
        asked = self.arguments.get("use_cache")
        makes = getattr(self.decoder.config, "use_cache", False) if asked is None else asked
        return self.cache is not None or bool(makes)


class ScaleRows:
    """Hook around a decoder's forward: settles what every row of the call is scaled for."""

    def __init__(self, site: ScaledRotary | AlibiBias) -> None:
        self.site = site
        scaled: dict[str | None, RotarySite | AlibiBias] = (
            {None: site} if isinstance(site, AlibiBias) else {}
        )
        self.turner: KeyTurner | None = None
        if isinstance(site, ScaledRotary):
            scaled = {name: each for name, each in site.sites.items() if each.per_row}
            self.turner = KeyTurner(site)
        # Caches fit whatever has the same method and geometry, in this process or another.
        self.maker = [(name, each.method, each.geometry) for name, each in scaled.items()]
        _, method, geometry = self.maker[0]
        assert isinstance(method, LengthDependent)
        self.method, self.original = method, geometry.original_max_position_embeddings

    def __call__(
        self, decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any
    ) -> None:
        arguments = named_arguments(decoder, args, kwargs)
        ids = arguments.get("input_ids")
        inputs = arguments.get("inputs_embeds") if ids is None else ids
        if not isinstance(inputs, Tensor):
            return  # what is read is no text, or stock says what is missing
        call = _Call(decoder, arguments, inputs)
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
        if old is not None and self._unchanged(call, old, columns):
            return old
        announced = requested_lengths(self.site, call.inputs)
        tokens = call.tokens(columns)
        wanted = tokens
        if announced is None or in_graph:
            wanted = self._wanted(call, old, tokens, columns)
        known = tokens.new_zeros(1) if announced is None else by_row(announced, call.inputs)
        wanted = torch.where(known > 0, torch.maximum(known, tokens), wanted)
        if call.room is not None and not in_graph:
            # The last token that is generated is never read, so it needs no place.
            more = int((wanted - tokens).min()) - (announced is not None)
            _require_room(call.room, int(columns) + max(more, 0))
        if old is not None:
            # Nobody knows how far rows of which nobody said anything will grow.
            next_one = torch.where(known > 0, wanted, self.method.bucket(wanted, self.original))
            wanted = torch.where(wanted > old.tokens, next_one, old.tokens)
        until = 0
        if not in_graph:
            until = int(columns) + int((wanted - tokens).min())
            if old is not None and old.is_for(wanted):
                old.request, old.until = announced, until
                return old
        scales = RowScales(wanted, self.maker, announced, until)
        if old is not None and call.cache is not None:
            scales.positions = old.positions
            if self.turner is not None:
                self.turner(call.decoder, call.cache, old, scales)
            _attach(call.cache, scales)  # whatever becomes of the call, its keys are turned
        return scales

    def _unchanged(self, call: _Call, old: RowScales, columns: int | Tensor) -> bool:
        """Whether the rows stay as they were scaled: nobody says otherwise, and none outgrows it."""
        if not torch.compiler.is_compiling():
            same = old.request is requested_lengths(self.site, call.inputs)
            return same and not call.may_jump and bool(columns <= old.until)
        # A graph knows no numbers. Rows of a static cache end with it, or with what was announced.
        if call.room is None or (old.request is not None) != anyone_announces():
            return False
        torch._assert_async(
            (call.tokens(columns) <= old.tokens).all(),
            "a row outgrows the scale of its StaticCache under torch.compile; plan its whole length",
        )
        return True

    def _carried(self, call: _Call, cached: int | Tensor) -> RowScales | None:
        """What the rows of a cache are scaled for, None if empty. Raises CacheError if it does not fit."""
        scales: RowScales | None = getattr(call.cache, _SCALES, None)
        if isinstance(cached, int):
            if cached == 0:
                return None
            if scales is not None and call.room is None:
                scales.keep_positions(cached)
        elif scales is None and torch.compiler.is_compiling():
            torch._assert_async(cached == 0, "the cache was filled by a model without this patch")
            return None
        elif scales is None and not int(cached):
            return None
        if scales is None:
            raise CacheError(
                f"the cache holds {int(cached)} tokens whose scale is not known: a model without this "
                "patch filled it, or it was made of the tensors of another one; start with an empty "
                "cache, or copy whole ones with copy.deepcopy"
            )
        if scales.maker != self.maker:
            raise CacheError(
                f"the cache was filled under another patch, {scales.maker}; this one is {self.maker}; "
                "start with an empty cache"
            )
        if len(scales.tokens) not in (1, call.rows):
            raise CacheError(
                f"the call has {call.rows} rows, but the cache knows the scale of {len(scales.tokens)}; "
                "move its rows with reorder_cache, batch_select_indices or batch_repeat_interleave"
            )
        return scales

    def _wanted(
        self, call: _Call, old: RowScales | None, tokens: Tensor, columns: int | Tensor
    ) -> Tensor:
        """What rows need a scale for when nobody said how long they will be."""
        if call.decoder.training:
            return self._in_training(call, tokens)
        if call.room is not None:
            return call.room - columns + tokens
        if old is not None or not call.keeps_keys():
            return tokens
        return self.method.bucket(tokens, self.original)

    def _in_training(self, call: _Call, tokens: Tensor) -> Tensor:
        length = self.method.training_length
        if length is None and (call.may_jump or call.is_part(tokens)):
            raise LengthError(
                "position_ids without a 2-D attention_mask do not tell how long rows are in training: "
                "packing and context parallelism hand over parts of them; patch with training_length=, "
                f"the tokens that {self.method.name!r} is to scale for"
            )
        if length is None:
            return tokens
        if not torch.compiler.is_compiling() and bool((tokens > length).any()):
            raise LengthError(
                f"a row of {int(tokens.max())} tokens is longer than training_length ({length})"
            )
        return torch.full_like(tokens, length)


def _made_cache(output: Any) -> Cache | None:
    """The cache that a call without one has made."""
    parts = output.values() if isinstance(output, dict) else output
    made = next((part for part in parts or () if isinstance(part, Cache)), None)
    return getattr(made, "self_attention_cache", made)


def _require_room(room: int, needed: int) -> None:
    if needed > room:
        raise LengthError(
            f"the request needs {needed} places in its cache, padding included, but the StaticCache "
            f"has {room}; make it with max_cache_len={needed} or ask for less"
        )
