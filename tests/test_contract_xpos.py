"""xPos on patched models against a loop over positions, with caches, over many blocks, and far out."""

import math

import pytest
import torch
from decoding import in_pieces, make_cache
from loops import one_layer
from replacement_cells import IDS, Cell, answers, fresh, replaced
from tiny_bias_models import assert_near, padded, real
from tiny_models import token_ids
from transformers import AttentionInterface

from ropepatch import patch_model
from ropepatch.attention import xpos

PAIRS = {  # of 16 channels, which pair turns each; −1: none does
    "llama": [*range(8), *range(8)],
    "cohere": [channel // 2 for channel in range(16)],
    "gpt_neox": [0, 1, 0, 1, *[-1] * 12],
    "phi": [*range(4), *range(4), *[-1] * 8],
    "glm4": [*[channel // 2 for channel in range(8)], *[-1] * 8],
}


def by_loop(kind: str, scale_base: float):
    """Attention of xPos, query by query and key by key, as its paper writes it, in float64."""
    pairs = torch.tensor(PAIRS[kind])
    rotated = int((pairs >= 0).sum())
    zeta = (2 * pairs.double() + 0.4 * rotated) / (1.4 * rotated)
    zeta[pairs < 0] = 1.0

    def attention(module, query, key, value, mask, scaling=None, **rest):
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, 1).double() for each in (key, value))
        out = torch.zeros_like(query, dtype=torch.float64)
        for m in range(query.shape[2]):
            scores = torch.stack(
                [
                    (query[:, :, m].double() * zeta ** (m / scale_base))
                    .mul(key[:, :, n] * zeta ** (-n / scale_base))
                    .sum(-1)
                    for n in range(m + 1)
                ],
                -1,
            )
            weights = (scores * (scaling or 1 / math.sqrt(query.shape[-1]))).softmax(-1)
            out[:, :, m] = torch.einsum("bhn,bhnc->bhc", weights, value[:, :, : m + 1])
        return out.transpose(1, 2).to(query.dtype), None

    return attention


def looped(kind, ids, scale_base):
    AttentionInterface.register("xpos_by_loop", by_loop(kind, scale_base))
    model = fresh(kind)
    model.config._attn_implementation = "xpos_by_loop"
    return answers(model, ids)


@pytest.mark.parametrize("scale_base", [512.0, 20.0])
@pytest.mark.parametrize("kind", PAIRS)
def test_logits_are_those_of_a_loop_over_positions(kind, scale_base):
    model = patch_model(fresh(kind), "xpos", 2, scale_base=scale_base)
    assert_near(answers(model), looped(kind, IDS, scale_base))


@pytest.fixture
def small_blocks(monkeypatch):
    """Seven queries at a time or fewer, so that a test sees many blocks."""
    monkeypatch.setattr(xpos, "LARGEST", 1.5)


@pytest.mark.parametrize("kind", PAIRS)
def test_queries_in_many_blocks_give_the_same(kind, small_blocks):
    model = patch_model(fresh(kind), "xpos", 2, scale_base=20.0)
    assert_near(answers(model), looped(kind, IDS, 20.0))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cache_is_read_across_blocks(cache, padding, small_blocks):
    ids, mask = padded(40, padding)
    model = patch_model(fresh("llama"), "xpos", 2, scale_base=20.0)
    expected = real(answers(model, ids, attention_mask=mask), mask)
    borders = [0, 5, 26, 38, 39, 40]  # one block, many blocks after a cache, tokens one by one
    pieces = in_pieces(model, ids, mask, make_cache(model, cache, 47), borders)
    assert_near(real(pieces, mask), expected)
    kept = mask[1].bool()
    assert_near(
        answers(model, ids, attention_mask=mask)[1, kept], looped("llama", ids[1:, kept], 20.0)[0]
    )


def test_many_blocks_have_the_gradients_of_one(monkeypatch):
    def gradients():
        model = replaced(Cell("llama", "xpos")).train()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return [p.grad for p in model.parameters()]

    expected = gradients()
    monkeypatch.setattr(xpos, "LARGEST", 1.02)
    for got, one in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(got, one, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_far_tokens_stay_finite_and_near_the_definition(dtype):
    """The last of 1200 tokens, where ζ^(−n/64) of the first pair is e^23: beyond float16."""
    ids = token_ids(1, 1200)
    model = patch_model(fresh("llama"), "xpos", 40.0, scale_base=64.0)
    exact = answers(model, ids)
    found = answers(model.to(dtype), ids)
    assert found.isfinite().all()
    error = (found.float() - exact)[0, -200:].abs().max() / exact.abs().max()
    near = (found.float() - exact)[0, :200].abs().max() / exact.abs().max()
    assert error <= 2 * near + 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_after_a_long_cache_stays_finite(dtype):
    """At the scale that is the default, as far as it is beyond float16."""
    ids = token_ids(1, 9001)
    model = patch_model(one_layer(fresh("llama")), "xpos", 300.0).to(dtype)
    pieces = in_pieces(model, ids, None, make_cache(model, "dynamic", 0), [0, 9000, 9001])
    assert pieces.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_at_long_lengths_are_finite(dtype):
    ids = token_ids(1, 1200)
    model = patch_model(fresh("llama"), "xpos", 40.0, scale_base=64.0).to(dtype).train()
    model(input_ids=ids, use_cache=False).logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_frequencies_are_exact_on_a_model_that_was_cast_before():
    model = patch_model(fresh("llama").to(torch.bfloat16), "xpos", 8)
    config, positions = model.config, torch.arange(200, 240)
    dim = config.hidden_size // config.num_attention_heads
    base = config.rope_parameters["rope_theta"]
    theta = base ** (-torch.arange(0, dim, 2).double() / dim)
    cos, sin = model.model.rotary_emb(torch.zeros(1), positions[None])
    angles = positions[:, None] * theta
    torch.testing.assert_close(cos[0, :, : dim // 2], angles.cos().float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[0, :, : dim // 2], angles.sin().float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale_base", [0.3, 1.0, 5.0])
def test_a_steep_decay_stays_finite_and_is_that_of_the_loop(scale_base):
    """ζ^(−n) of the first pair is beyond float32 after 71 tokens."""
    ids = token_ids(1, 100)
    model = patch_model(fresh("llama"), "xpos", 5, scale_base=scale_base)
    assert_near(answers(model, ids), looped("llama", ids, scale_base))
