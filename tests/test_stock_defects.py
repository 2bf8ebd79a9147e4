"""Where stock transformers computes another bias than the checkpoint asks for, and the patch does not."""

import pytest
import torch
import transformers
from hand_scaled import press_slopes
from tiny_bias_models import (
    answers,
    assert_near,
    bias_config,
    bias_model,
    fresh_bias_model,
    padded,
    real,
)
from tiny_models import token_ids
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.falcon.modeling_falcon import FalconAttention
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from ropepatch import patch_info, patch_model

LENGTH = 30


def error(logits, exact):
    """Relative to the largest logit."""
    return float((logits.double() - exact).abs().max() / exact.abs().max())


def exact_model(model, attend):
    """The model in float64 with another attention: `attend(query, key, value)` of (…, heads, n, channels)."""
    model = model.double()
    for module in model.modules():
        if isinstance(module, FalconAttention):
            module.forward = exact_falcon(module, attend)
        elif type(module).__name__ == "BloomAttention":
            module.forward = exact_bloom(module, attend)
    return model


def exact_falcon(module, attend):
    def forward(hidden_states, *args, **kwargs):
        query, key, value = module._split_heads(module.query_key_value(hidden_states))
        out = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return module.dense(out.transpose(1, 2).flatten(2)), None

    return forward


def exact_bloom(module, attend):
    def forward(hidden_states, residual, *args, **kwargs):
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        out = attend(query, key, value)
        return residual + module.dense(out.transpose(1, 2).flatten(2)), None

    return forward


def alibi_attention(heads, scale_bias=1.0):
    """softmax(q·k/√d − m·D)·v over earlier keys, dense (arXiv 2108.12409, §3)."""

    def attend(query, key, value):
        channels, length = query.shape[-1], query.shape[2]
        distances = torch.arange(length)[:, None] - torch.arange(length)
        scores = query @ key.mT * channels**-0.5
        scores = scores - press_slopes(heads)[:, None, None] * scale_bias * distances
        return scores.masked_fill(distances < 0, -torch.inf).softmax(-1) @ value

    return attend


def falcon(heads, length=LENGTH, **changes):
    sizes = {"num_attention_heads": heads, "hidden_size": 8 * heads, **changes}
    model = bias_model("falcon", max_position_embeddings=length, **sizes)
    # In Falcon the bias is divided by √head_dim like the scores.
    return model, exact_model(
        bias_model("falcon", max_position_embeddings=length, **sizes),
        alibi_attention(heads, 8**-0.5),
    )


@torch.no_grad()
def test_stock_falcon_adds_the_bias_twice_in_eager_attention_and_the_patch_once():
    ids = token_ids(2, LENGTH)
    model, exact = falcon(8)
    model.config._attn_implementation = "eager"
    expected = answers(exact, ids)
    assert error(answers(model, ids), expected) > 1e-2
    twice = exact_model(falcon(8)[0], alibi_attention(8, 2 * 8**-0.5))
    assert error(answers(model, ids), answers(twice, ids)) < 1e-5
    patch_model(model, "linear", 1)
    assert error(answers(model, ids), expected) < 1e-5
    assert any("twice" in note for note in patch_info(model).notes)


@torch.no_grad()
def test_the_patch_adds_falcons_bias_once_in_eager_kernels_too():
    ids = token_ids(2, LENGTH)
    model, exact = falcon(8)
    patch_model(model, "linear", 1, attention="eager")
    assert error(answers(model, ids), answers(exact, ids)) < 1e-5


@torch.no_grad()
def test_stock_falcon_rounds_slopes_and_positions_to_bfloat16_and_the_patch_does_not():
    """Slopes of six heads have no short mantissa, and positions beyond 256 neither."""
    ids = token_ids(1, 800)
    model, exact = falcon(6, 800, num_hidden_layers=1)
    model.config._attn_implementation = "sdpa"
    expected = answers(exact, ids)
    assert error(answers(model, ids), expected) > 1e-3
    assert error(answers(patch_model(model, "linear", 1), ids), expected) < 1e-5


@torch.no_grad()
def test_stock_bloom_rounds_its_bias_in_bfloat16_and_the_patch_does_not():
    """The patch is no worse than a bias in float32 would be; stock's is off by 4 at 2000 tokens."""
    ids = token_ids(1, 2100)
    sizes = {"n_layer": 1, "hidden_size": 16, "n_head": 2}
    model = bias_model("bloom", **sizes).to(torch.bfloat16)
    exact = exact_model(bias_model("bloom", **sizes).to(torch.bfloat16), alibi_attention(2))
    expected = answers(exact, ids)
    of_stock = error(answers(model, ids), expected)
    in_float32 = exact_model(bias_model("bloom", **sizes).to(torch.bfloat16), alibi_attention(2))
    rounded = rounding_attention(alibi_attention(2))
    for module in in_float32.to(torch.bfloat16).modules():
        if type(module).__name__ == "BloomAttention":
            module.forward = exact_bloom(module, rounded)
    of_float32_bias = error(answers(in_float32, ids), expected)
    of_ours = error(answers(patch_model(model, "linear", 1), ids), expected)
    assert of_stock > 3 * of_float32_bias
    assert of_ours <= 1.3 * of_float32_bias


def rounding_attention(attend):
    """What bfloat16 leaves of attention that is exact inside."""

    def rounded(query, key, value):
        return attend(query.double(), key.double(), value.double()).to(query.dtype)

    return rounded


def test_stock_bloom_ignores_an_overridden_bias_without_a_mask_and_the_patch_scales_alike():
    ids = token_ids(2, LENGTH)
    mask = torch.ones_like(ids)
    model = fresh_bias_model("bloom")
    stock = model.transformer.build_alibi_tensor
    model.transformer.build_alibi_tensor = lambda *args, **kwargs: stock(*args, **kwargs) / 4
    assert (answers(model, ids) - answers(model, ids, mask)).abs().max() > 1e-3
    patched = patch_model(fresh_bias_model("bloom"), "linear", 4)
    assert torch.equal(answers(patched, ids), answers(patched, ids, mask))
    assert_near(answers(patched, ids), answers(model, ids, mask))


class Sizes(TorchDispatchMode):
    """The number of elements of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = (each for each in tree_leaves(out) if isinstance(each, torch.Tensor))
        self.seen |= {each.untyped_storage().nbytes() // each.element_size() for each in tensors}
        return out


def test_stock_umt5_rebuilds_its_bias_in_every_layer_and_the_patch_builds_none(monkeypatch):
    length, built = 700, []
    compute_bias = UMT5Attention.compute_bias

    def counting(self, *args, **kwargs):
        built.append(compute_bias(self, *args, **kwargs).shape)
        return compute_bias(self, *args, **kwargs)

    monkeypatch.setattr(UMT5Attention, "compute_bias", counting)
    model = bias_model("umt5", head="EncoderModel", num_heads=2, d_model=16)
    ids, mask = padded(length, "right")
    expected = answers(model, ids, mask)
    assert built == [(1, 2, length, length)] * 2
    built.clear()
    patch_model(model, "linear", 1)
    with Sizes() as sizes:
        ours = answers(model, ids, mask)
    assert built == []
    assert max(sizes.seen) < length * length
    assert_near(real(ours, mask), real(expected, mask))


def test_stock_mpt_ignores_alibi_bias_max_and_the_patch_follows_it():
    """Half the exponent: as many heads of slopes 2^−(4h/H), by the formula of MPT's own code."""
    ids = token_ids(2, LENGTH)
    attn_config = transformers.MptConfig().attn_config.to_dict() | {"alibi_bias_max": 4}
    steep, plain = (
        bias_model("mpt", n_heads=4, attn_config=attn_config),
        bias_model("mpt", n_heads=4),
    )
    assert torch.equal(answers(steep, ids), answers(plain, ids))
    build = plain.transformer.build_mpt_alibi_tensor
    plain.transformer.build_mpt_alibi_tensor = lambda heads, length, device: build(
        heads, length, 4, device
    )
    expected = answers(plain, ids)
    for kernel in ("auto", "eager"):
        patched = patch_model(steep, "linear", 1, attention=kernel, replace=True)
        assert_near(answers(patched, ids), expected)
        assert any("alibi_bias_max" in note for note in patch_info(patched).notes)


@pytest.mark.parametrize("kind", ["bloom", "mpt", "t5", "umt5"])
def test_a_patch_that_agrees_with_stock_has_nothing_to_note(kind):
    assert patch_info(patch_model(fresh_bias_model(kind), "linear", 4)).notes == ()
    assert not hasattr(bias_config(kind), "ropepatch")
