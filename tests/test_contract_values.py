"""What patched models compute, over every architecture, attention, padding and cache."""

import pytest
import torch
from covering import each_pair, each_value
from decoding import CACHES, PADDINGS, answer, make_batch
from stock_models import NATIVE, OPTIONS, has_native, scale, stock_model
from tiny_models import (
    EAGER_ONLY,
    KINDS,
    SLIDING_KINDS,
    fresh_model,
    logits,
    tiny_config,
    tiny_model,
    token_ids,
)

from ropepatch import patch_model, patched

# Ours computes angles in float64, stock in float32: with weights this large logits differ by some 1e-6.
ROUNDING = {"atol": 1e-5, "rtol": 0}
KINDS_AND_ATTENTION = [
    (kind, attention)
    for kind in KINDS
    for attention in ("sdpa", "eager")
    if (kind, attention) not in {(eager_only, "sdpa") for eager_only in EAGER_ONLY}
]
KINDS_AND_METHODS = [
    pytest.param(kind, method, id=f"{kind}-{method}")
    for kind in KINDS
    for method in NATIVE
    if has_native(kind, method)
]


@each_value(model=KINDS_AND_ATTENTION, padding=PADDINGS, cache=CACHES)
def test_factor_one_leaves_logits_bit_identical(model, padding, cache):
    kind, attention = model
    model, batch = fresh_model(kind, attention=attention), make_batch(padding)
    before = answer(model, batch, cache)
    with patched(model, "yarn", factor=1):
        assert torch.equal(answer(model, batch, cache), before)


@each_value(
    model=[*KINDS_AND_ATTENTION, *KINDS_AND_ATTENTION], padding=PADDINGS, cache=CACHES, shift=1
)
def test_factor_four_equals_transformers_own_yarn(model, padding, cache):
    kind, attention = model
    stock = stock_model(kind, "yarn", attention=attention)
    ours = patch_model(fresh_model(kind, attention=attention), "yarn", factor=4)
    batch = make_batch(padding)
    torch.testing.assert_close(answer(ours, batch, cache), answer(stock, batch, cache), **ROUNDING)


@pytest.mark.parametrize(("kind", "method"), KINDS_AND_METHODS)
def test_factor_four_equals_transformers_own_method(kind, method):
    stock = stock_model(kind, method)
    ours = patch_model(fresh_model(kind), method, factor=4, **OPTIONS.get(method, {}))
    ids = token_ids(2, 64)
    torch.testing.assert_close(logits(ours, ids), logits(stock, ids), **ROUNDING)


LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
LATENT |= {"qk_rope_head_dim": 16, "n_routed_experts": 2, "n_group": 1, "topk_group": 1}
BEYOND = {
    "cohere2": {"sliding_window": 16},
    "deepseek_v3": {**LATENT, "num_experts_per_tok": 1, "num_key_value_heads": 4},
    "ernie4_5": {},
    "exaone4": {"sliding_window": 16},
    "falcon": {"alibi": False},
    "glm4_moe": {"n_routed_experts": 2, "num_experts_per_tok": 1, "head_dim": 16},
    "moshi": {},
    "persimmon": {"num_key_value_heads": 4},
}


@pytest.mark.parametrize("kind", BEYOND)
def test_architectures_beyond_the_list_are_found_by_their_structure(kind):
    """What reads like a rotary module is patched; the list of names above is for tests only."""
    config = tiny_config(kind, **BEYOND[kind])
    ours = patch_model(tiny_model(kind, attention="eager", config=config), "yarn", factor=4)
    scaled = tiny_config(kind, **BEYOND[kind])
    scale(scaled, None, NATIVE["yarn"], dim=16)
    scaled.max_position_embeddings = 128
    stock = tiny_model(kind, attention="eager", config=scaled)
    ids = token_ids(2, 40)
    torch.testing.assert_close(
        logits(ours, ids, use_cache=False), logits(stock, ids, use_cache=False), **ROUNDING
    )


@pytest.mark.parametrize("kind", KINDS)
def test_positions_matter_enough_to_the_logits_for_these_tests_to_mean_something(kind):
    model, ids = fresh_model(kind), token_ids(2, 40)
    before = logits(model, ids)
    with patched(model, "yarn", factor=4):
        assert (logits(model, ids) - before).abs().max() > 1e-3


@each_pair(kind=KINDS, cache=["dynamic", "static"], padding=PADDINGS)
def test_cached_decoding_equals_one_full_forward(kind, padding, cache):
    model = patch_model(fresh_model(kind), "yarn", factor=4)
    batch = make_batch(padding)
    torch.testing.assert_close(answer(model, batch, cache), answer(model, batch), **ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_generate_gives_the_same_tokens_with_and_without_cache(kind):
    model = patch_model(fresh_model(kind), "yarn", factor=4)
    batch = make_batch("left", 36)
    arguments = {"input_ids": batch.ids, "attention_mask": batch.mask, "max_new_tokens": 5}
    cached, uncached = (
        model.generate(**arguments, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, uncached)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_identical_gradients(kind):
    def gradients(checkpointing):
        model = patch_model(fresh_model(kind), "yarn", factor=4).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = token_ids(2, 40)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) == len(checkpointed) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("kind", SLIDING_KINDS)
def test_all_layer_types_are_scaled_when_asked(kind):
    stock = stock_model(kind, "linear, all layers")
    types = ["sliding_attention", "full_attention"]
    ours = patch_model(fresh_model(kind), "linear", factor=4, layer_types=types)
    ids = token_ids(2, 64)
    torch.testing.assert_close(logits(ours, ids), logits(stock, ids), **ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_whose_positions_start_again_equal_transformers_own(kind):
    stock = stock_model(kind, "yarn")
    ours = patch_model(fresh_model(kind), "yarn", factor=4)
    ids = token_ids(1, 60)
    position_ids = torch.cat([torch.arange(36), torch.arange(24)])[None]
    packed = {"position_ids": position_ids, "use_cache": False}
    torch.testing.assert_close(
        logits(ours, ids, **packed), logits(stock, ids, **packed), **ROUNDING
    )
    alone = logits(ours, ids[:, 36:], use_cache=False)
    torch.testing.assert_close(logits(ours, ids, **packed)[:, 36:], alone, **ROUNDING)
