"""Hand-written decoding loops: the scale of a row travels with its cache.

The oracle is a static patch at the factor of the bucket: it knows no lengths and no caches.
"""

import copy
import pickle

import pytest
import torch
from covering import each_pair, each_value
from decoding import make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import (
    EVERY_METHOD,
    METHODS,
    ROUNDING,
    TARGET,
    dynamic,
    in_two_threads,
    one_layer,
    static,
    step_by_step,
)
from tiny_bias_models import ALIBI_KINDS, fresh_bias_model
from tiny_models import KINDS, SLIDING_KINDS, TRAINED_LENGTH, logits, token_ids
from transformers import StaticCache

from ropepatch import patch_model, planned_length


@each_value(kind=[*KINDS, *KINDS], method=METHODS, span=[(20, 32, 32), (40, 64, 64), (70, 90, 128)])
def test_decoding_inside_a_bucket_is_the_full_forward_at_its_scale(kind, method, span):
    start, end, bucket = span
    ids = token_ids(1, end)
    borders = [0, start, start + 5, start + 6, start + 7, end - 1, end]
    decoded, _ = step_by_step(dynamic(kind, method), ids, borders)
    torch.testing.assert_close(decoded, logits(static(kind, method, bucket), ids), **ROUNDING)


@each_value(
    kind=[*KINDS, *KINDS],
    method=METHODS,
    change=[(30, 32, 64), (62, 64, 128), (30, 32, 128)],
    shift=1,
)
def test_keys_of_a_row_that_outgrows_its_bucket_are_those_of_the_next(kind, method, change):
    """In the first layer, where they depend on nothing but token and position."""
    start, old, new = change
    end = old + 1 if new == 2 * old else new
    ids = token_ids(2, end)
    _, cache = step_by_step(dynamic(kind, method), ids, [0, start, old - 1, old, end])
    wanted = static(kind, method, new)(ids).past_key_values
    torch.testing.assert_close(cache.layers[0].keys, wanted.layers[0].keys, **ROUNDING)


def without_attention(model):
    """Attention that writes nothing back: hidden states, and so all keys, are the same at every scale."""
    outputs = ("o_proj", "self_attn.dense", "attention.dense")
    for name, parameter in model.named_parameters():
        if any(output in name for output in outputs):
            parameter.data.zero_()
    return model


@each_value(kind=KINDS, method=METHODS)
def test_keys_of_every_layer_are_turned(kind, method):
    ids = token_ids(2, 70)
    model = without_attention(dynamic(kind, method))
    _, cache = step_by_step(model, ids, [0, 30, 32, 40, 63, 64, 70])
    wanted = without_attention(static(kind, method, 128))(ids).past_key_values
    for ours, theirs in zip(cache.layers, wanted.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, **ROUNDING)


# Stock's sliding windows count pads that lie between tokens.
SLIDING = ("gemma2", *SLIDING_KINDS)
PADDED = [
    (kind, padding)
    for kind in KINDS
    for padding in ("left", "right")
    if padding == "left" or kind not in SLIDING
]


@each_value(padded=PADDED, method=METHODS)
def test_padded_rows_decode_as_they_do_alone(padded, method):
    """Rows of 40 and 20 tokens: one is scaled for 64, the other is not, until it outgrows 32."""
    kind, padding = padded
    batch = make_batch(padding, 40, pads=20)
    more = token_ids(2, 24, seed=5)
    ids = torch.cat((batch.ids, more), 1)
    mask = torch.cat((batch.mask, torch.ones_like(more)), 1)
    borders = [0, 40, 42, 50, 51, 52, 53, 60, 64]
    together, _ = step_by_step(dynamic(kind, method), ids, borders, mask=mask)
    for row in range(2):
        real = mask[row].bool()
        own = [int(mask[row, :border].sum()) for border in borders]
        alone, _ = step_by_step(dynamic(kind, method), ids[row : row + 1, real], own)
        torch.testing.assert_close(together[row, real], alone[0], atol=3e-5, rtol=1e-5)


def moved_by(cache, how):
    """The cache with its two rows in another order or number, and the rows that it then has."""
    if how == "reorder":
        cache.reorder_cache(torch.tensor([1, 0]))
        return cache, [1, 0]
    if how == "select":
        cache.batch_select_indices(torch.tensor([1]))
        return cache, [1]
    if how == "repeat":
        cache.batch_repeat_interleave(2)
        return cache, [0, 0, 1, 1]
    if how == "copy":
        return copy.deepcopy(cache), [0, 1]
    if how == "pickle":
        return pickle.loads(pickle.dumps(cache)), [0, 1]
    return cache, [0, 1]


@each_pair(
    method=METHODS,
    how=["stay", "reorder", "select", "repeat", "copy", "pickle"],
    further=[10, 30],
)
def test_scales_follow_the_rows_of_a_cache(method, how, further):
    """`further` 30 takes both rows into their next buckets: positions must have followed, too."""
    batch = make_batch("left", 40, pads=20)
    positions = (batch.mask.cumsum(-1) - 1).clamp(min=0)
    model = dynamic("llama", method)
    with torch.no_grad():
        cache = model(batch.ids, attention_mask=batch.mask, position_ids=positions).past_key_values
    cache, rows = moved_by(cache, how)
    if how == "repeat":  # once more, now that the methods of the cache are followed
        cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
        rows = rows[::-1]
    more = token_ids(2, further, seed=5)[rows]
    mask = torch.cat((batch.mask[rows], torch.ones_like(more)), 1)
    at = positions[rows, -1:] + 1 + torch.arange(further)
    answer = model(more, attention_mask=mask, position_ids=at, past_key_values=cache).logits
    for index, row in enumerate(rows):
        real = batch.mask[row].bool()
        ids = torch.cat((batch.ids[row, real], more[index]))[None]
        alone, _ = step_by_step(dynamic("llama", method), ids, [0, int(real.sum()), ids.shape[1]])
        torch.testing.assert_close(answer[index], alone[0, -further:], atol=3e-5, rtol=1e-5)


@EVERY_METHOD
def test_a_cropped_cache_keeps_its_scale_and_positions(method):
    ids, other = token_ids(1, 45), token_ids(1, 40, seed=7)
    model = dynamic("llama", method)
    cache = model(ids).past_key_values
    cache.crop(-20)
    decoded, cache = step_by_step(
        model, torch.cat((ids[:, :25], other), 1), [25, 26, 30, 60], cache
    )
    joined = torch.cat((ids[:, :25], other), 1)[:, :60]
    full = logits(static("llama", method, 64), joined)
    torch.testing.assert_close(decoded, full[:, 25:], **ROUNDING)
    # Past the bucket: keys of the first layer are as if nothing had been cropped.
    _, cache = step_by_step(model, torch.cat((ids[:, :25], other), 1), [60, 65], cache)
    wanted = static("llama", method, 128)(torch.cat((ids[:, :25], other), 1)).past_key_values
    torch.testing.assert_close(cache.layers[0].keys, wanted.layers[0].keys, **ROUNDING)


@each_value(kind=KINDS, method=METHODS, shift=1)
def test_a_static_cache_says_how_long_its_rows_get(kind, method):
    model = dynamic(kind, method)
    config = model.config.get_text_config(decoder=True)
    cache = StaticCache(config=config, max_cache_len=64)
    ids = token_ids(1, 50)
    decoded, _ = step_by_step(model, ids, [0, 20, 30, 31, 32, 33, 34, 50], cache)
    torch.testing.assert_close(decoded, logits(static(kind, method, 64), ids), **ROUNDING)


@EVERY_METHOD
def test_a_static_cache_that_generate_has_used_is_scaled_for_its_places_by_a_loop(method):
    """The request is over: rows may grow until the cache is full."""
    model, ids = dynamic("llama", method), token_ids(1, 20)
    cache = StaticCache(config=model.config, max_cache_len=128)
    tokens = model.generate(ids, past_key_values=cache, max_new_tokens=20, do_sample=False)
    tokens = torch.cat((tokens, token_ids(1, 60, seed=5)), 1)
    _, cache = step_by_step(model, tokens, [39, 40, 41, 66, 99], cache)
    wanted = static("llama", method, 128)(tokens[:, :99]).past_key_values.layers[0].keys
    torch.testing.assert_close(cache.layers[0].keys[:, :, :99], wanted, **ROUNDING)


@EVERY_METHOD
def test_two_requests_interleaved_on_one_model_do_not_see_each_other(method):
    model = dynamic("llama", method)
    some, others = token_ids(1, 50), token_ids(1, 50, seed=3)
    alone = [
        step_by_step(dynamic("llama", method), ids, [0, 20, 40, 50])[0] for ids in (some, others)
    ]
    first, cache = step_by_step(model, some, [0, 20])
    second, cache_2 = step_by_step(model, others, [0, 20, 40])
    rest, _ = step_by_step(model, some, [20, 40, 50], cache)
    rest_2, _ = step_by_step(model, others, [40, 50], cache_2)
    assert torch.equal(torch.cat((first, rest), 1), alone[0])
    assert torch.equal(torch.cat((second, rest_2), 1), alone[1])


@EVERY_METHOD
def test_loops_of_two_threads_on_one_model_do_not_see_each_other(method):
    """Both outgrow their buckets while the other is in the middle of a call."""
    rows = [token_ids(1, 70), token_ids(1, 70, seed=3)]
    borders = [[0, 20, 32, 33, 40], [0, 40, 64, 65, 70]]
    model = dynamic("llama", method)
    alone = [
        step_by_step(dynamic("llama", method), *each)[0] for each in zip(rows, borders, strict=True)
    ]
    together = in_two_threads(
        model, lambda index: step_by_step(model, rows[index], borders[index])[0]
    )
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@each_value(kind=KINDS, method=METHODS, shift=2)
def test_a_loop_that_plans_its_length_never_changes_its_scale(kind, method):
    ids = token_ids(2, 90)
    model = dynamic(kind, method)
    with planned_length(model, 128):
        decoded, cache = step_by_step(model, ids, [0, 20, 31, 34, 50])
    rest, _ = step_by_step(model, ids, [50, 63, 66, 90], cache)
    full = logits(static(kind, method, 128), ids)
    torch.testing.assert_close(torch.cat((decoded, rest), 1), full, **ROUNDING)


@pytest.mark.parametrize("kind", ALIBI_KINDS)
@pytest.mark.parametrize(("start", "bucket"), [(20, 32), (40, 64), (70, 128)])
def test_slopes_of_a_decoding_loop_are_those_of_its_bucket(kind, start, bucket):
    model = patch_model(fresh_bias_model(kind), "dynamic_linear", TARGET)
    ids = token_ids(2, start + 10)
    decoded, _ = step_by_step(model, ids, [0, start, start + 1, start + 4, start + 10])
    wanted = patch_model(fresh_bias_model(kind), "linear", bucket / TRAINED_LENGTH)
    torch.testing.assert_close(decoded, logits(wanted, ids), **ROUNDING)


@pytest.mark.parametrize("kind", ALIBI_KINDS)
@pytest.mark.parametrize(("borders", "bucket"), [([0, 30, 33, 34], 64), ([0, 20, 70], 128)])
def test_slopes_of_a_loop_that_outgrows_its_bucket_are_those_of_the_next(kind, borders, bucket):
    """Of one layer, whose keys do not depend on slopes: nothing else is left of the old scale."""
    ids = token_ids(2, borders[-1])
    model = patch_model(one_layer(fresh_bias_model(kind)), "dynamic_linear", TARGET)
    decoded, _ = step_by_step(model, ids, borders)
    wanted = patch_model(one_layer(fresh_bias_model(kind)), "linear", bucket / TRAINED_LENGTH)
    last = borders[-2]
    torch.testing.assert_close(decoded[:, last:], logits(wanted, ids)[:, last:], **ROUNDING)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_of_any_length_in_pieces_of_any_size_are_exact(data):
    """Two padded rows, each within its bucket, read in random pieces: each as if read at once, alone."""
    kind, method = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(METHODS))
    buckets = data.draw(st.lists(st.sampled_from([32, 64, 128]), min_size=2, max_size=2))
    starts = [data.draw(st.integers(1 if b == 32 else b // 2 + 1, b - 1)) for b in buckets]
    new = data.draw(st.integers(1, min(b - s for b, s in zip(buckets, starts, strict=True))))
    columns = max(starts)
    ids = token_ids(2, columns + new, seed=data.draw(st.integers(0, 9)))
    mask = torch.ones_like(ids)
    for row, start in enumerate(starts):
        mask[row, : columns - start] = 0
    pieces = data.draw(st.sets(st.integers(1, new), max_size=5))
    borders = [0, columns, *sorted(columns + piece for piece in pieces | {new})]
    found, _ = step_by_step(dynamic(kind, method), ids, borders, mask=mask)
    for row, bucket in enumerate(buckets):
        real = mask[row].bool()
        expected = logits(static(kind, method, bucket), ids[row : row + 1, real])[0]
        torch.testing.assert_close(found[row, real], expected, atol=3e-5, rtol=1e-5)
