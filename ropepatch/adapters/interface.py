"""Score biases for models whose attention goes through transformers' attention interface.

transformers looks up attention and masks by a name in the model's own config; under ropepatch's, masks
stay one value for each key, and what to add to the scores is asked of the attention module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import eager_mask

from ropepatch.adapters.key_mask import KeyMask, make_key_mask, read_mask, whole_mask
from ropepatch.attention.biased import Kernel, biased_attention
from ropepatch.attention.profiles import ScoreProfile
from ropepatch.attention.score_bias import ScoreBias
from ropepatch.attention.xpos import block_length, decayed
from ropepatch.errors import PatchError
from ropepatch.surgery import AttributeChange

NAME = "ropepatch"
WATCHED = "ropepatch_watched"
IMPLEMENTATION = "_attn_implementation_internal"  #: where a config keeps the name
SITE = "_ropepatch_site"  #: attribute of an attention module
#: Attention beside the interface: the method of its module that computes it.
OWN_ATTENTION = {"GPTNeoSelfAttention": "_attn"}


@dataclass(eq=False)
class Site:
    """What an attention module of a patched model does besides."""

    bias: ScoreBias
    kernel: Kernel
    causal: bool
    log_decay: Tensor | None = None  #: (channels,) of xPos
    observer: ScoreProfile | None = None  #: while scores are measured
    block_length: int = field(init=False)  #: queries at a time, with xPos

    def __post_init__(self) -> None:
        self.block_length = 1 if self.log_decay is None else block_length(self.log_decay)


@dataclass(frozen=True)
class Seen:
    """One call of the attention interface: by which module, on what."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    settings: dict[str, Any]


_WATCHED: ContextVar[list[Seen]] = ContextVar("ropepatch_watched")
_ASKED: ContextVar[bool] = ContextVar("ropepatch_asked", default=False)


def ask_for_probabilities(asked: bool) -> None:
    """From here on attention answers with probabilities: GPT-2 and others do not hand on who asks."""
    if not torch.compiler.is_compiling():  # a context variable would break the graph
        _ASKED.set(asked)


def _are_asked_for(settings: dict[str, Any]) -> bool:
    handed_on = bool(settings.get("output_attentions"))
    return handed_on or (not torch.compiler.is_compiling() and _ASKED.get())


@contextmanager
def watched_attention(configs: list[PreTrainedConfig]) -> Iterator[list[Seen]]:
    """Within the body, attention of models with these configs answers zeros, and is written down."""
    before = [getattr(config, IMPLEMENTATION) for config in configs]
    seen: list[Seen] = []
    token = _WATCHED.set(seen)
    try:
        for config in configs:
            setattr(config, IMPLEMENTATION, WATCHED)
        yield seen
    finally:
        _WATCHED.reset(token)
        for config, name in zip(configs, before, strict=True):
            setattr(config, IMPLEMENTATION, name)


def write_down(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, **settings: Any
) -> tuple[Tensor, None]:
    """Stands in for attention while it is watched. What a layer reads then depends on no position."""
    _WATCHED.get().append(Seen(module, query, key, value, settings))
    rows, heads, queries = query.shape[:3]
    return value.new_zeros(rows, queries, heads, value.shape[-1]), None


def site_change(module: nn.Module, site: Site) -> AttributeChange:
    """What gives an attention module its site."""
    own = OWN_ATTENTION.get(type(module).__name__)
    if own is None:
        return AttributeChange(module, SITE, site)
    return AttributeChange(module, own, OwnAttention(module, site))


def site_of(module: nn.Module) -> Site | None:
    """The site that a patch gave an attention module."""
    own = vars(module).get(OWN_ATTENTION.get(type(module).__name__, ""))
    site: Site | None = own.site if isinstance(own, OwnAttention) else vars(module).get(SITE)
    return site


@dataclass(eq=False)
class OwnAttention:
    """Stands in for `_attn` of GPT-Neo's attention, which does not scale its scores."""

    module: Any
    site: Site

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: KeyMask | Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        module = self.module
        dropout = module.attn_dropout.p if module.training else 0.0
        window = module.config.window_size if module.attention_type == "local" else None
        layer = _Layer(self.site, 1.0, dropout, window, None, _are_asked_for({}))
        out, probabilities = layer.run(query, key, value, mask)
        return out.transpose(1, 2), probabilities


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: KeyMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers' interface calls it: (batch, query, heads, channels), and probabilities.

    Keys and values may have fewer heads than queries, which then share them.
    """
    site: Site | None = vars(module).get(SITE)
    if site is None:
        raise PatchError(
            f"{type(module).__name__} runs ropepatch's attention, but carries no patch; call "
            "unpatch_model, then patch_model again"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    if isinstance(attention_mask, Tensor):  # a matrix tells all: causality and windows, too
        attention_mask = attention_mask.expand(-1, -1, query.shape[2], -1)
        sliding_window = None
    layer = _Layer(site, scale, dropout, sliding_window, softcap, _are_asked_for(settings))
    return layer.run(query, key, value, attention_mask)


@dataclass(frozen=True)
class _Layer:
    """One call of one layer, keys and values as many as queries have heads."""

    site: Site
    scale: float
    dropout: float
    window: int | None
    softcap: float | None
    probabilities: bool

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, mask: KeyMask | Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, heads, n, channels) → (batch, query, heads, channels), and probabilities if wanted."""
        if self.site.observer is not None:
            self.site.observer.add(query, key, self.scale)
        if isinstance(mask, KeyMask) and mask.starts is not None and not self.probabilities:
            return self._by_document(query, key, value, mask.starts), None
        offset, visible = read_mask(mask, query, key)
        if self.probabilities:
            visible = whole_mask(mask, query, key, self.site.causal)
        log_decay = self.site.log_decay
        attend = partial(
            biased_attention,
            bias=self.site.bias,
            causal=self.site.causal,
            scale=self.scale,
            dropout=self.dropout,
            kernel=self.site.kernel,
            window=self.window,
            softcap=self.softcap,
            probabilities=self.probabilities,
        )
        if log_decay is None:
            return attend(query, key, value, mask=visible, offset=offset)
        blocks = []
        step = self.site.block_length
        for start in range(0, query.shape[2], step):
            part = query[:, :, start : start + step]
            first = offset + start
            turned = decayed(part, key, log_decay, first, first)
            seen = visible
            if visible is not None and visible.shape[2] > 1:
                seen = visible[:, :, start : start + step]
            blocks.append(attend(*turned, value, mask=seen, offset=first))
        outs, found = zip(*blocks, strict=True)
        return torch.cat(outs, 1), torch.cat(found, 2) if self.probabilities else None

    def _by_document(self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor) -> Tensor:
        """Every document by itself, which is also less work than to mask the others."""
        rows = []
        for row, own in enumerate(starts):
            ends = [*own.nonzero().flatten().tolist(), query.shape[2]]
            borders = ends if ends[0] == 0 else [0, *ends]
            parts = []
            for first, last in pairwise(borders):
                some = [states[row : row + 1, :, first:last] for states in (query, key, value)]
                parts.append(self.run(some[0], some[1], some[2], None)[0])
            rows.append(torch.cat(parts, 1))
        return torch.cat(rows)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, make_key_mask)
AttentionInterface.register(WATCHED, write_down)
# Numbers, which attention that computes itself can take; it is then known by not having been seen.
AttentionMaskInterface.register(WATCHED, eager_mask)
