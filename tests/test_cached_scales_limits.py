"""What a cache with scales refuses, what fixes scales beforehand, and unusual caches and rows."""

import pytest
import torch
from decoding import make_batch
from loops import EVERY_METHOD, ROUNDING, dynamic, static, step_by_step
from tiny_models import fresh_model, logits, token_ids
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from ropepatch import patch_model, planned_length
from ropepatch.errors import CacheError, LengthError, MethodOptionError, NotPatchedError


def test_a_cache_of_the_unpatched_model_is_refused():
    cache = fresh_model("llama")(token_ids(1, 8)).past_key_values
    with pytest.raises(CacheError, match="8 tokens of a model without this patch"):
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


@EVERY_METHOD
def test_growth_of_the_buckets_is_an_option(method):
    ids = token_ids(1, 40)
    model = dynamic("llama", method, bucket_growth=4.0)
    decoded, _ = step_by_step(model, ids, [0, 35, 36, 40])
    torch.testing.assert_close(decoded, logits(static("llama", method, 128), ids), **ROUNDING)


@EVERY_METHOD
def test_training_takes_the_length_of_the_row_or_the_one_given(method):
    ids = token_ids(1, 64)
    model = dynamic("llama", method).train()
    expected = logits(static("llama", method, 64), ids)
    torch.testing.assert_close(logits(model, ids), expected, **ROUNDING)
    model = dynamic("llama", method, training_length=128).train()
    expected = logits(static("llama", method, 128), ids)
    torch.testing.assert_close(logits(model, ids), expected, **ROUNDING)


def test_training_refuses_positions_that_may_be_of_a_part():
    model = dynamic("llama", "dynamic_ntk").train()
    ids, positions = token_ids(1, 20), torch.arange(20)[None] + 20
    with pytest.raises(LengthError, match="training_length="):
        model(ids, position_ids=positions)
    model(ids, position_ids=positions, attention_mask=torch.ones_like(ids))
    dynamic("llama", "dynamic_ntk", training_length=64).train()(ids, position_ids=positions)


def test_rows_can_be_planned_one_by_one():
    ids = token_ids(2, 20)
    model = dynamic("llama", "dynamic_ntk")
    with planned_length(model, torch.tensor([64, 128])):
        found = logits(model, ids)
    for row, bucket in enumerate((64, 128)):
        expected = logits(static("llama", "dynamic_ntk", bucket), ids)
        torch.testing.assert_close(found[row], expected[row], **ROUNDING)


@pytest.mark.parametrize("tokens", [0, -3, 1.5])
def test_what_is_no_length_cannot_be_planned(tokens):
    with pytest.raises(LengthError, match="whole numbers, at least 1"):  # noqa: SIM117
        with planned_length(dynamic("llama", "dynamic_ntk"), tokens):
            pass


def test_lengths_are_planned_for_length_dependent_methods_only():
    with pytest.raises(NotPatchedError), planned_length(fresh_model("llama"), 64):
        pass
    model = patch_model(fresh_model("llama"), "yarn", 4)
    with pytest.raises(MethodOptionError, match="every length alike"), planned_length(model, 64):
        pass


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
