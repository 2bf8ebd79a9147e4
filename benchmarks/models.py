"""The models that are measured: stock, ours, and the limit, plain attention without a bias."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    MptConfig,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

import ropepatch
from benchmarks.cells import HEADS, LAYERS, Cell

HIDDEN = 256
VOCABULARY = 512  # small, so that the logits do not outweigh the attention

Step = Callable[[], Tensor]


def build(model: str, length: int, *, attention: str = "eager") -> PreTrainedModel:
    """A stock model with the same random float32 weights for everyone, in evaluation mode."""
    torch.manual_seed(0)
    if model == "t5":
        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            d_kv=HIDDEN // HEADS,
            d_ff=4 * HIDDEN,
            num_layers=LAYERS,
            num_heads=HEADS,
            dropout_rate=0.0,
        )
        config._attn_implementation = attention
        encoder: Any = T5EncoderModel(config).eval()
        # Stock initialises the table so small that positions would hardly matter.
        nn.init.normal_(
            encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        )
        result: PreTrainedModel = encoder
        return result
    decoder = AutoModelForCausalLM.from_config(
        _decoder_config(model, length), attn_implementation=attention
    )
    for parameter in decoder.parameters():
        if parameter.dim() > 1:  # larger than stock's, so that attention looks somewhere
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    result = decoder.eval()
    return result


def _decoder_config(model: str, length: int) -> Any:
    if model == "bloom":
        return BloomConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            use_cache=False,
        )
    if model == "mpt":
        return MptConfig(
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            n_layers=LAYERS,
            n_heads=HEADS,
            max_seq_len=length,  # stock refuses more
            use_cache=False,
        )
    return FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        alibi=True,
        multi_query=False,
        parallel_attn=False,
        use_cache=False,
    )


def variant_of(cell: Cell) -> PreTrainedModel:
    """The model of a cell in its dtype, with the bias table frozen unless the cell trains it."""
    model = build(cell.model, cell.length, attention="sdpa" if cell.variant == "sdpa" else "eager")
    model.to(getattr(torch, cell.dtype))
    if cell.direction != "backward-table":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("relative_attention_bias" not in name)
    if cell.variant == "ours":
        ropepatch.patch_model(
            model, "linear", factor=1, original_max_position_embeddings=cell.length
        )
    if cell.variant == "limit":
        remove_bias(model)
    return model


def step_of(model: PreTrainedModel, length: int, *, limit: bool) -> Step:
    """A call that runs the model on `length` random tokens and returns its output."""
    tokens = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))
    # transformers hands on a mask of four dimensions as it is, so the limit builds none.
    mask = torch.ones(1, 1, 1, length, dtype=torch.bool) if limit else None
    return lambda: model(input_ids=tokens, attention_mask=mask)[0]


def remove_bias(model: PreTrainedModel) -> None:
    """Replace the attention of this instance by plain SDPA: no bias, no mask but causality."""
    forwards: dict[str, Callable[..., Any]] = {
        "BloomAttention": _bloom,
        "MptAttention": _mpt,
        "FalconAttention": _falcon,
        "T5Attention": _t5,
    }
    for module in model.modules():
        if forward := forwards.get(type(module).__name__):
            module.forward = MethodType(forward, module)
    decoder: Any = getattr(model, "transformer", None)
    if model.config.model_type == "bloom":
        decoder.build_alibi_tensor = lambda mask, heads, dtype: mask
    elif model.config.model_type == "mpt":
        decoder.build_mpt_alibi_tensor = lambda heads, length, device: None
    elif model.config.model_type == "falcon":
        decoder.use_alibi = False


def plain_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """SDPA with the heads merged. (batch, heads, tokens, channels) → (batch, tokens, hidden)"""
    seen: Tensor = F.scaled_dot_product_attention(query, key, value, **options)
    return seen.transpose(1, 2).flatten(2)


def _heads(states: Tensor) -> Tensor:
    """(batch, tokens, hidden) → (batch, heads, tokens, channels)"""
    *outer, hidden = states.shape
    return states.view(*outer, HEADS, hidden // HEADS).transpose(1, 2)


def _bloom(self: Any, hidden_states: Tensor, residual: Tensor, **_: Any) -> tuple[Tensor, None]:
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    seen: Tensor = self.dense(plain_attention(query, key, value, is_causal=True))
    return seen + residual, None


def _mpt(self: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    query, key, value = map(_heads, self.Wqkv(hidden_states).chunk(3, dim=-1))
    seen = plain_attention(query, key, value, is_causal=True, scale=self.softmax_scale)
    return self.out_proj(seen), None


def _falcon(self: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    qkv = self._split_heads(self.query_key_value(hidden_states))
    query, key, value = (part.transpose(1, 2) for part in qkv)
    return self.dense(plain_attention(query, key, value, is_causal=True)), None


def _t5(self: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None, None]:
    query, key, value = (_heads(project(hidden_states)) for project in (self.q, self.k, self.v))
    return self.o(plain_attention(query, key, value, scale=self.scaling)), None, None
