"""Rotary models that see the future: biases to both sides, windows that end on both, no xPos."""

import pytest
import torch
from tiny_models import TRAINED_LENGTH, token_ids
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForMaskedLM,
    LlamaForCausalLM,
)
from transformers.masking_utils import eager_mask

from ropepatch import patch_model
from ropepatch.errors import UnsupportedModelError

REFERENCE = "dense_encoder_reference"
HEADS = 4
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED_LENGTH,
    "initializer_range": 0.2,  # so that positions matter
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# A layer that sees 4 tokens to each side, and one that sees all.
WINDOWED = {
    "local_attention": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "cls_token_id": 1,
    "sep_token_id": 2,
}
IDS = token_ids(2, 40)
PADDED = torch.ones_like(IDS)
PADDED[1, 30:] = 0


def encoder(kind):
    """The same each time; "llama" is a decoder whose config says that it is none."""
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(AutoConfig.for_model(kind, **SIZES, is_causal=False)).eval()
    config = AutoConfig.for_model(kind, **SIZES, **(WINDOWED if kind == "modernbert" else {}))
    return AutoModelForMaskedLM.from_config(config).eval()


def dense(module, query, key, value, attention_mask, scaling=None, **rest):
    """softmax(q·k·scale − m|D|)·v in float64, masked as transformers' own masks say."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1).double() for each in (key, value))
    places = torch.arange(query.shape[2]).double()
    slopes = 2.0 ** (-8 * torch.arange(1, HEADS + 1).double() / HEADS)
    bias = -slopes[:, None, None] * (places[:, None] - places).abs()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query.double() @ key.mT * scale + bias
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).to(query.dtype), None


AttentionInterface.register(REFERENCE, dense)
AttentionMaskInterface.register(REFERENCE, eager_mask)


@torch.no_grad()
def by_hand(kind, mask):
    model = encoder(kind)
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.zero_()
    model.set_attn_implementation(REFERENCE)
    return model(IDS, attention_mask=mask).logits


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", ["modernbert", "eurobert", "llama"])
def test_a_bias_is_that_of_both_directions_within_what_stock_sees(kind, mask, attention):
    model = patch_model(encoder(kind), "alibi", 2, attention=attention)
    with torch.no_grad():
        found = model(IDS, attention_mask=mask).logits
    there = PADDED.bool() if mask is not None else torch.ones_like(IDS).bool()
    wanted = by_hand(kind, mask)
    assert not torch.allclose(encoder(kind)(IDS, attention_mask=mask).logits, wanted, atol=1e-3)
    torch.testing.assert_close(found[there], wanted[there], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["modernbert", "eurobert", "llama"])
def test_xpos_is_refused_where_scores_would_grow_towards_the_future(kind):
    model = encoder(kind)
    before = model(IDS).logits
    with pytest.raises(UnsupportedModelError, match=r"sees the future.*causal models only"):
        patch_model(model, "xpos", 2)
    assert torch.equal(model(IDS).logits, before)
