"""Cached keys, rotated on when a row outgrows its scale, however a model rotates its keys."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
)

from ropepatch.attention.lengths import request_lengths
from ropepatch.attention.rotary import RotarySite, ScaledRotary
from ropepatch.attention.row_scales import PAIRINGS, Pairing, RowScales, turn_if, turned
from ropepatch.errors import CacheError
from ropepatch.methods.base import RotaryFrequencies

# The layer type whose frequencies turn a layer's keys, and how.
Rotation = tuple[str | None, Pairing]
Cached = tuple[Tensor, Tensor]  # keys and values
_SAME, _FITS = 0.01, 0.03  # what float32 and bfloat16 round off, in parts of the largest number


class KeyTurner:
    """Rotates the keys of a cache on to other frequencies, once it knows how the model rotates them."""

    def __init__(self, rotary: ScaledRotary) -> None:
        self.rotary = rotary
        self.found: Sequence[Rotation | None] | None = None  # at first need

    def __call__(
        self, decoder: PreTrainedModel, cache: Cache, old: RowScales, new: RowScales
    ) -> None:
        """Turn keys from the `old` scales to the `new` ones, in place of the cache."""
        if getattr(cache, "offloading", False):  # its copies are under way on other streams
            torch.accelerator.synchronize()
        turning = []  # checked, all of them, before any is turned
        for layer, rotated in zip(cache.layers, self.rotations(decoder), strict=True):
            keys: Tensor | None = getattr(layer, "keys", None)
            if rotated is not None and keys is not None and self.rotary.sites[rotated[0]].per_row:
                turning.append((layer, keys, _positions(layer, keys, old.positions), *rotated))
        for layer, keys, positions, layer_type, pairing in turning:
            site = self.rotary.sites[layer_type]
            before, after = site.rows(old).frequencies, site.rows(new).frequencies
            in_graph = torch.compiler.is_compiling()
            if in_graph and keys.requires_grad:  # no branch has a gradient there
                turned_keys = turned(keys, positions, before, after, pairing)
                layer.keys = torch.where(old.is_for(new.tokens), keys, turned_keys)
            elif in_graph:
                turn_if(
                    ~old.is_for(new.tokens),
                    keys,
                    positions,
                    before.inv_freq,
                    before.attention_factor,
                    after.inv_freq,
                    after.attention_factor,
                    pairing,
                )
            elif type(layer) is StaticLayer:  # its keys stay where graphs have found them
                keys.copy_(turned(keys, positions, before, after, pairing))
            else:
                layer.keys = turned(keys, positions, before, after, pairing)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def rotations(self, decoder: PreTrainedModel) -> Sequence[Rotation | None]:
        """Which frequencies turn the keys of each layer, and how; None where nothing does.

        A single token at two positions tells: it attends to itself only, so that its position shows
        in keys and nowhere else.
        """
        if self.found is None:
            first, moved = (self._cached(decoder, at) for at in (0, 1))
            self.found = [self._rotation(*pair) for pair in zip(first, moved, strict=True)]
        return self.found

    def _rotation(self, at_0: Cached | None, at_1: Cached | None) -> Rotation | None:
        """What turns keys at position 0 to those at position 1. Raises CacheError where nothing does."""
        if at_0 is None or at_1 is None:
            return None
        (before, values), (after, values_at_1) = at_0, at_1
        hidden = _difference(values, values_at_1) > _SAME  # as where keys are kept compressed
        if not hidden and _difference(before, after) <= _SAME:
            return None
        fits: list[tuple[float, Rotation]] = [
            (_misfit(site, pairing, before, after), (layer_type, pairing))
            for layer_type, site in self.rotary.sites.items()
            for pairing in PAIRINGS
        ]
        misfit, best = min(fits, key=lambda fit: fit[0])
        if hidden or misfit > _FITS:
            raise CacheError(
                "how this model rotates its keys is not understood, so they cannot be turned to the "
                "scale that longer rows need; announce their length with ropepatch.planned_length"
            )
        return best

    def _cached(self, decoder: PreTrainedModel, at: int) -> list[Cached | None]:
        """What every layer caches for one token at a position. (1, heads, 1, head_dim) each"""
        device = self.rotary.device  # where embeddings are may be told by nobody but accelerate
        values = torch.arange(1, decoder.config.hidden_size + 1, device=device).sin()
        modes = {module: module.training for module in decoder.modules()}
        # Scaled, so that layer types of equal frequencies can be told apart when one is left alone.
        length = torch.tensor([max(map(_probed_length, self.rotary.sites.values()))], device=device)
        decoder.eval()  # without dropout
        try:
            with request_lengths([self.rotary], length):
                cache = decoder(
                    inputs_embeds=values.to(decoder.dtype)[None, None],
                    position_ids=torch.tensor([[at]], device=device),
                    use_cache=True,
                    return_dict=True,
                ).past_key_values
        finally:
            for module, training in modes.items():
                module.training = training
        kept = [vars(layer) for layer in cache.layers]
        return [(each["keys"], each["values"]) if "keys" in each else None for each in kept]


def _probed_length(site: RotarySite) -> int:
    return 2 * site.geometry.original_max_position_embeddings


def _misfit(site: RotarySite, pairing: Pairing, before: Tensor, after: Tensor) -> float:
    """How far keys at position 0, rotated to position 1, are from those that are there."""
    still = RotaryFrequencies(torch.zeros_like(site.stock)[None])
    moving = RotaryFrequencies(site.stock[None])
    if site.per_row:
        length = torch.tensor([_probed_length(site)])
        moving = RotaryFrequencies(site.rows(RowScales(length)).frequencies.inv_freq)
    return _difference(turned(before, torch.ones(1, 1), still, moving, pairing), after)


def _difference(some: Tensor, others: Tensor) -> float:
    """The largest, in parts of the largest number."""
    return float((some - others).abs().max() / others.abs().max())


def _positions(layer: object, keys: Tensor, positions: Tensor | None) -> Tensor:
    """Of the keys that a layer holds, the last ones. Raises CacheError for keys that cannot be turned."""
    # Their subclasses keep keys in other forms, too.
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer):
        raise CacheError(
            f"keys in a {type(layer).__name__} cannot be turned to the scale that longer rows "
            "need; announce their length with ropepatch.planned_length, or use generate"
        )
    held = keys.shape[-2]
    if positions is None or positions.shape[-1] < held:
        raise CacheError("the cache holds keys whose positions are not known; start anew")
    return positions[:, -held:]
