"""Cached keys, rotated on when a row outgrows its scale, however a model rotates its keys."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
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


class KeyTurner:
    """Rotates the keys of a cache on to other frequencies, once it knows how the model rotates them."""

    def __init__(self, rotary: ScaledRotary) -> None:
        self.rotary = rotary
        self.long = 2 * max(
            site.geometry.original_max_position_embeddings for site in rotary.sites.values()
        )
        self.found: Sequence[Rotation | None] | None = None  # at first need

    @torch.no_grad()
    def __call__(
        self, decoder: PreTrainedModel, cache: Cache, old: RowScales, new: RowScales
    ) -> None:
        """Turn keys from the `old` scales to the `new` ones, in place of the cache."""
        if getattr(cache, "offloading", False):  # its copies are under way on other streams
            torch.accelerator.synchronize()
        for layer, rotated in zip(cache.layers, self.rotations(decoder), strict=True):
            if rotated is None or not isinstance(layer, CacheLayerMixin) or layer.keys is None:
                continue
            layer_type, pairing = rotated
            site = self.rotary.sites[layer_type]
            if not site.per_row:
                continue
            # Their subclasses keep keys in other forms, too.
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer):
                raise CacheError(
                    f"keys in a {type(layer).__name__} cannot be turned to the scale that longer rows "
                    "need; announce their length with ropepatch.planned_length, or use generate"
                )
            held = layer.keys.shape[-2]
            if old.positions is None or old.positions.shape[-1] < held:
                raise CacheError("the cache holds keys whose positions are not known; start anew")
            frequencies = (site.rows(old).frequencies, site.rows(new).frequencies)
            change = (old.positions[:, -held:], *frequencies, pairing)
            if torch.compiler.is_compiling():
                turn_if(~old.is_for(new.tokens), layer.keys, *change)
            elif type(layer) is StaticLayer:  # its keys stay where graphs have found them
                layer.keys.copy_(turned(layer.keys, *change))
            else:
                layer.keys = turned(layer.keys, *change)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def rotations(self, decoder: PreTrainedModel) -> Sequence[Rotation | None]:
        """Which frequencies turn the keys of each layer, and how; None where nothing does."""
        if self.found is None:
            self.found = self._probe(decoder)
        return self.found

    def _probe(self, decoder: PreTrainedModel) -> list[Rotation | None]:
        """Which frequencies and pairing every layer has: a single token at two positions tells.

        It attends to itself only, so that its position shows in keys and nowhere else.
        """
        place = 1
        found: list[Rotation | None] = []
        first, moved = (self._keys(decoder, at) for at in (0, place))
        for before, after in zip(first, moved, strict=True):
            if before is None or after is None or torch.equal(before, after):
                found.append(None)
                continue
            fits = {
                (layer_type, pairing): self._misfit(site, pairing, before, after, place)
                for layer_type, site in self.rotary.sites.items()
                for pairing in PAIRINGS
            }
            best = min(fits, key=fits.__getitem__)
            if fits[best] > 0.03:  # what bfloat16 rounds off
                raise CacheError("how this model rotates its keys is not understood")
            found.append(best)
        return found

    def _keys(self, decoder: PreTrainedModel, at: int) -> list[Tensor | None]:
        """What every layer caches for one token at a position. (1, heads, 1, head_dim) each"""
        weight = next(decoder.get_input_embeddings().parameters())
        values = torch.arange(1, decoder.config.hidden_size + 1, device=weight.device).sin()
        cache = DynamicCache(config=decoder.config)
        # Scaled, so that layer types of equal frequencies can be told apart when one is left alone.
        with request_lengths(self.rotary, torch.tensor([self.long], device=weight.device)):
            decoder(
                inputs_embeds=values.to(weight.dtype)[None, None],
                position_ids=torch.tensor([[at]], device=weight.device),
                past_key_values=cache,
                use_cache=True,
            )
        return [getattr(layer, "keys", None) for layer in cache.layers]

    def _misfit(
        self, site: RotarySite, pairing: Pairing, before: Tensor, after: Tensor, place: int
    ) -> float:
        """How far keys at position 0, rotated to `place`, are from those that are there."""
        still = RotaryFrequencies(torch.zeros_like(site.inv_freq)[None], 1.0)
        made = site.rows(RowScales(self.long)).frequencies if site.per_row else None
        moving = RotaryFrequencies(site.inv_freq[None] if made is None else made.inv_freq, 1.0)
        positions = torch.full((1, 1), place)
        error = turned(before, positions, still, moving, pairing) - after
        return float(error.abs().max() / after.abs().max())
