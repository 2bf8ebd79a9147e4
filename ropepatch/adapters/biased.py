"""What stands in for the `forward` of attention modules whose scores carry a bias."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache

from ropepatch.attention.biased import Kernel, biased_attention
from ropepatch.attention.lengths import given_cache
from ropepatch.attention.profiles import ScoreProfile
from ropepatch.attention.score_bias import ScoreBias


@dataclass(eq=False)
class BiasedForward:
    """`forward` of one attention module, on this one model. Subclasses know the module's projections."""

    module: Any
    bias: ScoreBias | None  #: None: cross-attention
    kernel: Kernel
    causal: bool
    observer: ScoreProfile | None = None  #: while scores are measured

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
        *,
        scale: float,
        dropout: float,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over cached and new keys, heads merged: (batch, query, channels), and probabilities."""
        if self.observer is not None:
            self.observer.add(query, key.expand(-1, query.shape[1], -1, -1), scale, self.bias)
        offset: int | Tensor = 0
        if cache is not None:
            offset = _tokens_in(cache, self.module.layer_idx)
            key, value = cache.update(key, value, self.module.layer_idx)
        out, probabilities = biased_attention(
            query,
            key,
            value,
            self.bias,
            mask=None if mask.shape[-1] < key.shape[2] else mask,
            offset=offset,
            causal=self.causal,
            scale=scale,
            dropout=dropout if self.module.training else 0.0,
            kernel=self.kernel,
        )
        return out.flatten(2), probabilities


def _tokens_in(cache: Cache, layer: int) -> int | Tensor:
    """Tokens that a layer's cache holds; a static one counts in a tensor, which it changes in place."""
    tokens = cache.get_seq_length(layer)
    if not isinstance(tokens, Tensor):
        return tokens
    return tokens.clone() if torch.compiler.is_compiling() else int(tokens)


class BloomForward(BiasedForward):
    """BloomAttention."""

    def __call__(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        alibi: None,
        attention_mask: Tensor,
        layer_past: Cache | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        module = self.module
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        out, probabilities = self.attend(
            query,
            key,
            value,
            attention_mask,
            layer_past,
            scale=module.inv_norm_factor,
            dropout=module.attention_dropout.p,
        )
        out = F.dropout(module.dense(out), module.hidden_dropout, module.training)
        return residual + out, probabilities


class MptForward(BiasedForward):
    """MptAttention."""

    def __call__(
        self,
        hidden_states: Tensor,
        position_bias: None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        module = self.module
        fused = module.Wqkv(hidden_states)
        if module.clip_qkv:
            fused = fused.clamp(-module.clip_qkv, module.clip_qkv)
        shape = (3, module.n_heads, module.head_dim)
        query, key, value = fused.unflatten(-1, shape).permute(2, 0, 3, 1, 4)
        assert attention_mask is not None
        out, probabilities = self.attend(
            query,
            key,
            value,
            attention_mask,
            given_cache(kwargs),
            scale=module.softmax_scale,
            dropout=module.attn_dropout_p,
        )
        return module.out_proj(out), probabilities


class FalconForward(BiasedForward):
    """FalconAttention with `alibi=True`: the bias once, and not in bfloat16."""

    def __call__(
        self,
        hidden_states: Tensor,
        alibi: None,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        layer_past: Cache | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        module = self.module
        query, key, value = module._split_heads(module.query_key_value(hidden_states))
        out, probabilities = self.attend(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attention_mask,
            layer_past,
            scale=module.inv_norm_factor,
            dropout=module.attention_dropout.p,
        )
        return module.dense(out), probabilities


class T5Forward(BiasedForward):
    """T5Attention and its copies, self- and cross-attention."""

    def __call__(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Tensor | None]:
        out, probabilities = self.run(hidden_states, mask, key_value_states, given_cache(kwargs))
        return out, None, probabilities

    def run(
        self, hidden_states: Tensor, mask: Tensor | None, memory: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over the states themselves, or over the encoder's `memory`."""
        module = self.module
        assert mask is not None
        if memory is None:
            key, value = self._heads(module.k(hidden_states)), self._heads(module.v(hidden_states))
            cache = getattr(cache, "self_attention_cache", cache)
        else:
            key, value = self._memory(memory, cache)
            cache = None
        query = self._heads(module.q(hidden_states))
        out, probabilities = self.attend(
            query, key, value, mask, cache, scale=module.scaling, dropout=module.dropout
        )
        return module.o(out), probabilities

    def _heads(self, states: Tensor) -> Tensor:
        channels: int = self.module.key_value_proj_dim
        return states.view(*states.shape[:2], -1, channels).transpose(1, 2)

    def _memory(self, memory: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's output, which a cache keeps from the first token on."""
        module, layer = self.module, self.module.layer_idx
        if not isinstance(cache, EncoderDecoderCache):
            return self._heads(module.k(memory)), self._heads(module.v(memory))
        if not cache.is_updated.get(layer):
            keys, values = self._heads(module.k(memory)), self._heads(module.v(memory))
            cache.cross_attention_cache.update(keys, values, layer)
            cache.is_updated[layer] = True
        cached = cache.cross_attention_cache.layers[layer]
        return cached.keys, cached.values


class Umt5Forward(T5Forward):
    """UMT5Attention: other names, and a table of its own in every layer."""

    def __call__(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        return self.run(hidden_states, attention_mask, encoder_hidden_states, given_cache(kwargs))


def no_bias(*args: object, **kwargs: object) -> None:
    """Stands in for a stack's builder of ALiBi matrices."""


def forward_attribute(module: nn.Module) -> str:
    """Where a module's forward is found: accelerate's hooks call the one that they wrapped."""
    return "_old_forward" if hasattr(module, "_hf_hook") else "forward"
