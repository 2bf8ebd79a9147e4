"""A weak induction circuit in the initial weights of a small Llama, for retrieval to grow from.

Two heads are written by hand (the circuit of arXiv 2209.11895), all other weights stay as they
were drawn. Layer 0, head 0 attends to the previous token by position alone, and writes that
token's signature into residual channels that nothing else uses. Layer 1, head 0 looks for the
current token among the signatures and copies what it finds there. Left to chance, the two halves
have to meet before either pays, which costs a small model many millions of tokens.

The signature is a few random projections of the embedding, so a match is found in one case out
of three: a start for the optimizer, no finished skill.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from ropepatch.errors import ConfigError

_FAST_PAIRS = 3  #: they turn fast enough to tell the previous position from its neighbours
_SLOW_PAIRS = 8  #: they turn little within the window, so that a match counts at any distance
_PREVIOUS_SCORE = 12.0  #: before the softmax, for each fast pair
_MATCH_SCORE = 28.0  #: before the softmax, for equal tokens
_EMBEDDING_GAIN = 3.0  #: or the outputs of the first layer drown the tokens' own embeddings
_CONSTANT = 6.0  #: of the constant channel, in standard deviations of the embedding
_SIGNATURE_NORM = 0.5  #: of the embedding's norm


class _Attention(Protocol):
    """What the circuit uses of a Llama's attention."""

    head_dim: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear


@dataclass(frozen=True)
class _Layout:
    """Where the residual stream keeps what, and how large RMSNorm hands it on.

    Channel 0 is constant, the next `len(signature)` are free for signatures, the rest is content.
    """

    signature: Tensor  #: (2 × slow pairs, hidden), orthonormal rows over the content
    copy: Tensor  #: (head_dim, hidden), likewise
    constant: float  #: of channel 0 behind RMSNorm
    content: float  #: norm of the content behind RMSNorm
    norm: float  #: norm of the content in the residual stream

    def projected(self, projection: Tensor) -> float:
        """Norm of a token's content behind RMSNorm and a projection of `len(projection)` rows."""
        channels = self.signature.shape[1] - 1 - len(self.signature)
        return self.content * math.sqrt(len(projection) / channels)


@torch.no_grad()
def add_induction_circuit(model: PreTrainedModel, *, seed: int = 0) -> None:
    """Write the circuit into a freshly initialised model, in place."""
    depth = model.config.num_hidden_layers
    if not isinstance(model, LlamaForCausalLM) or depth is None or depth < 2:
        raise ConfigError(
            "the induction circuit is written for a llama of at least two layers, not for a "
            f"{model.config.model_type} of {depth}; leave it out"
        )
    layers = model.model.layers
    first, second = layers[0].self_attn, layers[1].self_attn
    if first.head_dim < 2 * (_FAST_PAIRS + _SLOW_PAIRS):
        raise ConfigError(
            f"the induction circuit needs {_FAST_PAIRS + _SLOW_PAIRS} rotary pairs in each head, "
            f"head_dim={first.head_dim} has {first.head_dim // 2}; use larger heads"
        )
    layout = _lay_out_embedding(model, first.head_dim, torch.Generator().manual_seed(seed))
    inv_freq = model.model.rotary_emb.inv_freq[:_FAST_PAIRS].float()
    _attend_to_previous(first, layout, inv_freq)
    _write_signature(first, layers[0].mlp.down_proj.weight, layout)
    _match_signature(second, layout)
    _copy_token(second, layout)


def _lay_out_embedding(
    model: LlamaForCausalLM, head_dim: int, generator: torch.Generator
) -> _Layout:
    embedding = model.model.embed_tokens.weight
    hidden = embedding.shape[1]
    reserved = 1 + 2 * _SLOW_PAIRS
    std = _EMBEDDING_GAIN * model.config.initializer_range
    embedding *= _EMBEDDING_GAIN
    embedding[:, 0] = _CONSTANT * std
    embedding[:, 1:reserved] = 0.0
    norm = math.sqrt(hidden - reserved) * std
    # RMSNorm brings every token to norm sqrt(hidden).
    scale = math.sqrt(hidden / (norm**2 + (_CONSTANT * std) ** 2))
    return _Layout(
        signature=_random_projection(2 * _SLOW_PAIRS, reserved, hidden, generator),
        copy=_random_projection(head_dim, reserved, hidden, generator),
        constant=_CONSTANT * std * scale,
        content=norm * scale,
        norm=norm,
    )


def _random_projection(rows: int, reserved: int, hidden: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows that ignore the first `reserved` channels, (rows, hidden)."""
    projection = torch.zeros(rows, hidden)
    noise = torch.randn(hidden - reserved, rows, generator=generator)
    projection[:, reserved:] = torch.linalg.qr(noise)[0].T
    return projection


def _attend_to_previous(attention: _Attention, layout: _Layout, inv_freq: Tensor) -> None:
    """Keys are turned one position ahead, so that a query fits the position before its own best."""
    head_dim = attention.head_dim
    query, key = attention.q_proj.weight, attention.k_proj.weight
    amplitude = math.sqrt(_PREVIOUS_SCORE * math.sqrt(head_dim)) / layout.constant
    partners = slice(head_dim // 2, head_dim // 2 + _FAST_PAIRS)
    query[:head_dim] = 0.0
    key[:head_dim] = 0.0
    query[:_FAST_PAIRS, 0] = amplitude
    key[:_FAST_PAIRS, 0] = amplitude * inv_freq.cos()
    key[partners, 0] = amplitude * inv_freq.sin()


def _write_signature(attention: _Attention, down_proj: Tensor, layout: _Layout) -> None:
    rows = len(layout.signature)
    value, out = attention.v_proj.weight, attention.o_proj.weight
    # Nothing else in this layer may write where the constant and the signature are kept.
    down_proj[: 1 + rows] = 0.0
    out[: 1 + rows] = 0.0
    out[:, : attention.head_dim] = 0.0
    value[: attention.head_dim] = 0.0
    value[:rows] = layout.signature
    gain = _SIGNATURE_NORM * layout.norm / layout.projected(layout.signature)
    out[1 : 1 + rows, :rows] = gain * torch.eye(rows)


def _match_signature(attention: _Attention, layout: _Layout) -> None:
    head_dim, rows = attention.head_dim, len(layout.signature)
    query, key = attention.q_proj.weight, attention.k_proj.weight
    half = torch.arange(head_dim // 2 - _SLOW_PAIRS, head_dim // 2)
    slow = torch.cat([half, half + head_dim // 2])
    lengths = layout.projected(layout.signature) * _SIGNATURE_NORM * layout.content
    gain = math.sqrt(_MATCH_SCORE * math.sqrt(head_dim) / lengths)
    query[:head_dim] = 0.0
    key[:head_dim] = 0.0
    query[slow] = gain * layout.signature
    key[slow, 1 + torch.arange(rows)] = gain


def _copy_token(attention: _Attention, layout: _Layout) -> None:
    attention.v_proj.weight[: attention.head_dim] = layout.copy
    gain = layout.norm / layout.projected(layout.copy)
    attention.o_proj.weight[:, : attention.head_dim] = gain * layout.copy.T
