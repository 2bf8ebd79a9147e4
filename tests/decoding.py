"""How the contract tests run a model: with padding, and through each kind of cache."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from tiny_bias_models import padded, real
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

PADDINGS = ("none", "left", "right")
CACHES = (None, "dynamic", "static")
LENGTH = 40  # beyond the trained length of the tiny models, 32
PADS = 5
STEPS = 3  # tokens decoded one by one after the prefill


@dataclass(frozen=True)
class Batch:
    """Two rows of tokens, the second one padded, and what tells padding from text."""

    ids: Tensor  # (2, tokens)
    mask: Tensor | None = None  # (2, tokens)
    position_ids: Tensor | None = None  # (2, tokens)


def make_batch(padding: str, length: int = LENGTH, *, pads: int = PADS) -> Batch:
    """Two rows; `padding` is where the second one has its pads."""
    ids, mask = padded(length, padding, pads=pads)
    positions = (mask.cumsum(-1) - 1).clamp(min=0) if padding == "left" else None
    return Batch(ids, mask, positions)


def make_cache(model: nn.Module, kind: str, length: int) -> Any:
    """An empty cache with room for `length` tokens; encoder–decoder models keep the encoder's keys, too."""
    config = model.config
    if config.is_encoder_decoder:
        return EncoderDecoderCache(_own_cache(config, kind, length), DynamicCache(config=config))
    return _own_cache(config.get_text_config(decoder=True), kind, length)


def _own_cache(config: Any, kind: str, length: int) -> Any:
    if kind == "static":
        return StaticCache(config=config, max_cache_len=length)
    return DynamicCache(config=config)


@torch.no_grad()
def in_pieces(
    model: Any, ids: Tensor, mask: Tensor | None, cache: Any, borders: list[int], **more: Any
) -> Tensor:
    """Logits of one call after another, each from a border to the next. (batch, length, vocabulary)

    Of `more`, what has a number for every token is cut alike.
    """
    arguments = {"past_key_values": cache, "use_cache": True}
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()(input_ids=ids, attention_mask=mask)
        arguments |= {"encoder_outputs": encoder, "attention_mask": mask}
    side = "decoder_" if model.config.is_encoder_decoder else ""
    pieces = []
    for start, end in pairwise(borders):
        arguments[f"{side}input_ids"] = ids[:, start:end]
        arguments[f"{side}attention_mask"] = None if mask is None else mask[:, :end]
        arguments |= {name: each[:, start:end] for name, each in more.items()}
        pieces.append(model(**arguments).logits)
    return torch.cat(pieces, 1)


@torch.no_grad()
def answer(model: nn.Module, batch: Batch, cache_kind: str | None = None) -> Tensor:
    """Logits of all real tokens; with a cache: prefill, then token by token. (tokens, vocabulary)"""
    ids, mask, length = batch.ids, batch.mask, batch.ids.shape[1]
    positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    if cache_kind is None:
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, **positions).logits
    else:
        cache = make_cache(model, cache_kind, length)
        borders = [0, *range(length - STEPS, length + 1)]
        out = in_pieces(model, ids, mask, cache, borders, **positions)
    return real(out, mask)
