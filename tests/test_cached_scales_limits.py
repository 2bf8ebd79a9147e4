"""What a cache with scales refuses, and unusual caches and rows."""

import copy

import pytest
import torch
from decoding import make_batch
from loops import (
    EVERY_METHOD,
    ROUNDING,
    STATIC,
    TARGET,
    dynamic,
    one_layer,
    options,
    static,
    step_by_step,
)
from tiny_models import fresh_model, logits, token_ids
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from ropepatch import patch_model, planned_length
from ropepatch.errors import CacheError, LengthError


def test_a_cache_of_the_unpatched_model_is_refused():
    cache = fresh_model("llama")(token_ids(1, 8)).past_key_values
    with pytest.raises(CacheError, match="8 tokens whose scale is not known"):
        dynamic("llama", "dynamic_ntk")(token_ids(1, 1), past_key_values=cache)


def test_a_cache_of_another_patch_is_refused():
    cache = dynamic("llama", "dynamic_ntk")(token_ids(1, 8)).past_key_values
    with pytest.raises(CacheError, match="another patch"):
        dynamic("llama", "dynamic_yarn")(token_ids(1, 1), past_key_values=cache)
    dynamic("llama", "dynamic_ntk")(token_ids(1, 1), past_key_values=cache)


def test_rows_that_the_cache_does_not_know_are_refused():
    batch = make_batch("left", 40, pads=20)
    model = dynamic("llama", "dynamic_ntk")
    cache = model(batch.ids, attention_mask=batch.mask).past_key_values
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.repeat(2, 1, 1, 1), layer.values.repeat(2, 1, 1, 1)
    with pytest.raises(CacheError, match="4 rows, but the cache knows the scale of 2"):
        model(token_ids(4, 1), attention_mask=torch.ones(4, 41), past_key_values=cache)


def test_a_cache_that_was_reset_starts_anew():
    model = dynamic("llama", "dynamic_ntk")
    for make in (DynamicCache, StaticCache):
        more = {"max_cache_len": 100} if make is StaticCache else {}
        cache, fresh = (make(config=model.config, **more) for _ in range(2))
        model(token_ids(1, 50), past_key_values=cache)
        cache.reset()
        ids = token_ids(1, 20)
        expected = logits(model, ids, past_key_values=fresh)
        assert torch.equal(logits(model, ids, past_key_values=cache), expected)


def test_a_static_cache_smaller_than_the_request_is_refused():
    model = dynamic("llama", "dynamic_ntk")
    cache = StaticCache(config=model.config, max_cache_len=30)
    with pytest.raises(LengthError, match=r"needs 40 places in its cache.*has 30"):
        model(token_ids(1, 40), past_key_values=cache)
    # The last token that is generated is never read.
    with pytest.raises(LengthError, match=r"needs 39 places in its cache.*has 30"):
        model.generate(token_ids(1, 20), max_new_tokens=20, past_key_values=cache)


class NoStream:
    """Stands in for streams of an accelerator: the host does one thing after the other."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@EVERY_METHOD
def test_an_offloaded_cache_is_turned_after_its_copies_have_arrived(method, monkeypatch):
    waited = []
    monkeypatch.setattr(torch, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: NoStream())
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append(True))
    ids, borders = token_ids(2, 70), [0, 20, 33, 34, 64, 70]
    model = dynamic("llama", method)
    found, _ = step_by_step(model, ids, borders, DynamicCache(config=model.config, offloading=True))
    assert len(waited) == 2  # from 32 tokens to 64 and to 128
    assert torch.equal(found, step_by_step(model, ids, borders)[0])


class OtherLayer(DynamicLayer):
    """As quantized layers are: keys, but not as the model wrote them."""


def test_keys_in_a_form_that_is_not_known_are_never_turned():
    model = dynamic("llama", "dynamic_ntk")
    cache = DynamicCache(config=model.config)
    cache.layers = [OtherLayer() for _ in cache.layers]
    ids = token_ids(1, 40)
    _, cache = step_by_step(model, ids, [0, 20, 32], cache)
    with pytest.raises(CacheError, match=r"keys in a OtherLayer.*planned_length"):
        model(ids[:, 32:], past_key_values=cache)
    cache = DynamicCache(config=model.config)
    cache.layers = [OtherLayer() for _ in cache.layers]
    with planned_length(model, 64):
        found, _ = step_by_step(model, ids, [0, 20, 32, 40], cache)
    torch.testing.assert_close(found, logits(static("llama", "dynamic_ntk", 64), ids), **ROUNDING)


@EVERY_METHOD
def test_rows_may_get_longer_than_the_target(method):
    """As scaled as they are long: 128 tokens is the target, no limit."""
    model, ids = dynamic("llama", method), token_ids(1, 20)
    answers = [
        model.generate(ids, max_new_tokens=150, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*answers)
    ids = token_ids(1, 150)
    found, _ = step_by_step(model, ids, [0, 130, 131, 140, 150])
    torch.testing.assert_close(found, logits(static("llama", method, 256), ids), **ROUNDING)


@EVERY_METHOD
def test_positions_may_jump(method):
    """Rows count up to their last position, and keys are turned by the positions that they have."""
    ids = token_ids(1, 40)
    positions = torch.cat((torch.arange(10), torch.arange(20, 45), torch.arange(60, 65)))[None]
    model = dynamic("llama", method)
    cache = None
    with torch.no_grad():
        for start, end in ((0, 15), (15, 35), (35, 40)):  # 25, 45 and 65 tokens
            at = positions[:, start:end]
            cache = model(ids[:, start:end], position_ids=at, past_key_values=cache).past_key_values
        wanted = static("llama", method, 128)(ids, position_ids=positions).past_key_values
    torch.testing.assert_close(cache.layers[0].keys, wanted.layers[0].keys, **ROUNDING)


def fail_once(module):
    """Let the next call of a module run out of memory."""

    def hook(*_):
        handle.remove()
        raise MemoryError

    handle = module.register_forward_pre_hook(hook)


@EVERY_METHOD
def test_a_call_that_failed_past_its_bucket_can_be_made_again(method):
    """Its keys were turned before it failed, and must not be turned twice."""
    ids, model = token_ids(1, 60), dynamic("llama", method)
    _, cache = step_by_step(model, ids, [0, 20])
    fail_once(model.model.layers[0])
    with pytest.raises(MemoryError), torch.no_grad():
        model(ids[:, 20:], past_key_values=cache)
    found, _ = step_by_step(model, ids, [20, 60], cache)
    expected, _ = step_by_step(dynamic("llama", method), ids, [0, 20, 60])
    assert torch.equal(found, expected[:, 20:])


def test_no_key_is_turned_when_one_of_them_cannot_be():
    ids, model = token_ids(1, 40), dynamic("llama", "dynamic_ntk")
    cache = DynamicCache(config=model.config)
    cache.layers = [DynamicLayer(), OtherLayer()]
    _, cache = step_by_step(model, ids, [0, 20], cache)
    before = cache.layers[0].keys.clone()
    with pytest.raises(CacheError, match="OtherLayer"):
        model(ids[:, 20:], past_key_values=cache)
    assert torch.equal(cache.layers[0].keys, before)


def test_keys_that_a_model_keeps_compressed_are_refused_and_not_left():
    """DeepSeek's rotary part is among the values; planned lengths need no turning."""
    config = AutoConfig.for_model(
        "deepseek_v3",
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        max_position_embeddings=32,
        rope_interleave=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    expected_model = patch_model(copy.deepcopy(model), "ntk", 2)
    patch_model(model, "dynamic_ntk", TARGET)
    ids = token_ids(1, 40)
    _, cache = step_by_step(model, ids, [0, 20])
    with pytest.raises(CacheError, match=r"not understood.*planned_length"):
        model(ids[:, 20:], past_key_values=cache)
    with planned_length(model, 64):
        found, _ = step_by_step(model, ids, [0, 20, 40])
    torch.testing.assert_close(found, logits(expected_model, ids), **ROUNDING)


@EVERY_METHOD
def test_gradients_go_through_keys_that_were_turned(method):
    """In one layer, whose keys are those of the next bucket, they are those of a full forward."""
    model = one_layer(dynamic("llama", method))
    wanted = one_layer(static("llama", method, 64))
    states = model.get_input_embeddings()(token_ids(1, 40)).detach().requires_grad_()
    cache = model(inputs_embeds=states[:, :20]).past_key_values
    out = model(inputs_embeds=states[:, 20:], past_key_values=cache).logits
    (found,) = torch.autograd.grad(out.square().sum(), states)
    full = wanted(inputs_embeds=states, use_cache=False).logits[:, 20:]
    (expected,) = torch.autograd.grad(full.square().sum(), states)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@EVERY_METHOD
def test_padding_that_is_cropped_leaves_room_for_no_more_tokens(method):
    """20 tokens and 20 pads; what is decoded after them outgrows its bucket as it would without."""
    ids, model = token_ids(1, 60), dynamic("llama", method)
    mask = torch.ones(1, 40, dtype=torch.long)
    mask[:, 20:] = 0
    with torch.no_grad():
        cache = model(ids[:, :40], attention_mask=mask).past_key_values
    cache.crop(-20)
    found, _ = step_by_step(model, ids, [20, 25, 52], cache)
    expected, _ = step_by_step(dynamic("llama", method), ids, [0, 20, 25, 52])
    torch.testing.assert_close(found, expected[:, 20:], **ROUNDING)


@EVERY_METHOD
def test_keys_of_a_model_that_was_cast_before_it_was_patched_are_turned_right(method):
    """Its own frequencies are rounded to bfloat16; keys of short rows are rotated by those."""
    ids = token_ids(1, 40)
    model = patch_model(fresh_model("llama").bfloat16(), method, TARGET, **options("llama", method))
    _, cache = step_by_step(model, ids, [0, 32, 33])
    wanted = patch_model(
        fresh_model("llama").bfloat16(), method, TARGET, **options("llama", method)
    )
    with planned_length(wanted, 64):
        _, planned = step_by_step(wanted, ids, [0, 33])
    difference = (cache.layers[0].keys - planned.layers[0].keys).float().abs().max()
    assert difference <= 0.02 * planned.layers[0].keys.float().abs().max()


@EVERY_METHOD
def test_a_static_cache_that_was_planned_smaller_is_scaled_on(method):
    ids, model = token_ids(1, 100), dynamic("llama", method)
    cache = StaticCache(config=model.config, max_cache_len=128)
    with planned_length(model, 40):
        step_by_step(model, ids, [0, 20], cache)
    step_by_step(model, ids, [20, 50, 100], cache)
    wanted = static("llama", method, 128)(ids).past_key_values.layers[0].keys
    torch.testing.assert_close(cache.layers[0].keys[:, :, :100], wanted, **ROUNDING)


@pytest.mark.parametrize("method", ["dynamic_linear", "dynamic_ntk", "dynamic_yarn"])
def test_a_later_turn_of_generate_is_scaled_for_its_own_request(method):
    """50 + 30 tokens, by a static patch at just that factor; in one layer keys are the same."""
    model, ids = one_layer(dynamic("llama", method)), token_ids(1, 50)
    cache = DynamicCache(config=model.config)
    model.generate(ids[:, :20], past_key_values=cache, max_new_tokens=5, do_sample=False)
    cache.crop(-4)
    tokens = model.generate(ids, past_key_values=cache, max_new_tokens=30, do_sample=False)
    fresh = one_layer(dynamic("llama", method)).generate(ids, max_new_tokens=30, do_sample=False)
    assert torch.equal(tokens, fresh)
    wanted = patch_model(one_layer(fresh_model("llama")), STATIC[method], 80 / 32)(tokens[:, :79])
    torch.testing.assert_close(
        cache.layers[0].keys, wanted.past_key_values.layers[0].keys, **ROUNDING
    )


def test_continuous_batching_is_refused():
    with pytest.raises(CacheError, match="continuous batching joins requests"):
        dynamic("llama", "dynamic_ntk").generate_batch([[1, 2, 3]], max_new_tokens=5)
