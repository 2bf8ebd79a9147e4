"""Hand-written decoding loops: the scale of a row travels with its cache.

The oracle is a static patch at the factor of the bucket: it knows no lengths and no caches.
"""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from decoding import make_batch, make_cache
from stock_models import ROTATED
from tiny_bias_models import ALIBI_KINDS, fresh_bias_model
from tiny_models import KINDS, SLIDING_KINDS, TRAINED_LENGTH, fresh_model, logits, token_ids
from torch._dynamo.utils import counters
from transformers import DynamicCache, StaticCache

from ropepatch import patch_model, planned_length
from ropepatch.errors import CacheError, LengthError, MethodOptionError, NotPatchedError

ROUNDING = {"atol": 1e-5, "rtol": 1e-5}  # nemotron answers with large logits
TARGET = 4  # times the trained length of 32: buckets of 32, 64 and 128 tokens
STATIC = {"dynamic_linear": "linear", "dynamic_ntk": "ntk", "dynamic_yarn": "yarn"}
METHODS = [*STATIC, "longrope"]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def lists(kind):
    pairs = ROTATED.get(kind, 16) // 2
    return {
        "short_factor": [1.0] * pairs,
        "long_factor": [1.0 + i for i in range(pairs)],
        "attention_factor": 1.0,
    }


def dynamic(kind, method, **options):
    options |= lists(kind) if method == "longrope" else {}
    return patch_model(fresh_model(kind), method, TARGET, **options)


def static(kind, method, bucket):
    """The model whose every row is scaled for `bucket` tokens, by a method that knows no lengths."""
    if bucket == TRAINED_LENGTH:
        return fresh_model(kind)
    if method == "longrope":
        # Unscaled lengths would need the short list: give the long one for both.
        options = lists(kind)
        options["short_factor"] = options["long_factor"]
        return patch_model(fresh_model(kind), "longrope", TARGET, **options)
    return patch_model(fresh_model(kind), STATIC[method], bucket / TRAINED_LENGTH)


@torch.no_grad()
def step_by_step(model, ids, borders, cache=None, **arguments):
    """Logits of a loop that gives the model what lies between the borders, and its cache."""
    out = []
    for start, end in pairwise(borders):
        more = {name: value[:, :end] for name, value in arguments.items()}
        answer = model(ids[:, start:end], past_key_values=cache, use_cache=True, **more)
        cache = answer.past_key_values
        out.append(answer.logits)
    return torch.cat(out, 1), cache


@EVERY_KIND
@EVERY_METHOD
@pytest.mark.parametrize(("start", "end", "bucket"), [(20, 32, 32), (40, 64, 64), (70, 90, 128)])
def test_decoding_inside_a_bucket_is_the_full_forward_at_its_scale(
    kind, method, start, end, bucket
):
    ids = token_ids(1, end)
    borders = [0, start, start + 5, *range(start + 6, end + 1)]
    decoded, _ = step_by_step(dynamic(kind, method), ids, borders)
    torch.testing.assert_close(decoded, logits(static(kind, method, bucket), ids), **ROUNDING)


@EVERY_KIND
@EVERY_METHOD
@pytest.mark.parametrize(("start", "old", "new"), [(30, 32, 64), (62, 64, 128), (30, 32, 128)])
def test_keys_of_a_row_that_outgrows_its_bucket_are_those_of_the_next(
    kind, method, start, old, new
):
    """In the first layer, where they depend on nothing but token and position."""
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


@EVERY_KIND
@EVERY_METHOD
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


@pytest.mark.parametrize(("kind", "padding"), PADDED)
@EVERY_METHOD
def test_padded_rows_decode_as_they_do_alone(kind, method, padding):
    """Rows of 40 and 20 tokens: one is scaled for 64, the other is not, until it outgrows 32."""
    batch = make_batch(padding, 40, pads=20)
    more = token_ids(2, 24, seed=5)
    ids = torch.cat((batch.ids, more), 1)
    mask = torch.cat((batch.mask, torch.ones_like(more)), 1)
    borders = [0, 40, 42, 50, 51, 52, 53, 60, 64]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model = dynamic(kind, method)
    cache, together = None, []
    for start, end in pairwise(borders):
        answer = model(
            ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
        )
        cache = answer.past_key_values
        together.append(answer.logits)
    together = torch.cat(together, 1)
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


@EVERY_METHOD
@pytest.mark.parametrize("how", ["stay", "reorder", "select", "repeat", "copy", "pickle"])
@pytest.mark.parametrize("further", [10, 30])
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


@EVERY_KIND
@EVERY_METHOD
def test_a_static_cache_says_how_long_its_rows_get(kind, method):
    model = dynamic(kind, method)
    config = model.config.get_text_config(decoder=True)
    cache = StaticCache(config=config, max_cache_len=64)
    ids = token_ids(1, 50)
    decoded, _ = step_by_step(model, ids, [0, 20, 30, *range(31, 51)], cache)
    torch.testing.assert_close(decoded, logits(static(kind, method, 64), ids), **ROUNDING)


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


@EVERY_KIND
@EVERY_METHOD
def test_a_loop_that_plans_its_length_never_changes_its_scale(kind, method):
    ids = token_ids(2, 90)
    model = dynamic(kind, method)
    with planned_length(model, 128):
        decoded, cache = step_by_step(model, ids, [0, 20, 31, 34, 50])
    rest, _ = step_by_step(model, ids, [50, 63, 66, 90], cache)
    full = logits(static(kind, method, 128), ids)
    torch.testing.assert_close(torch.cat((decoded, rest), 1), full, **ROUNDING)


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


@pytest.mark.parametrize("kind", ALIBI_KINDS)
@pytest.mark.parametrize(("start", "bucket"), [(20, 32), (40, 64), (70, 128)])
def test_slopes_of_a_decoding_loop_are_those_of_its_bucket(kind, start, bucket):
    model = patch_model(fresh_bias_model(kind), "dynamic_linear", TARGET)
    ids = token_ids(2, start + 10)
    decoded, _ = step_by_step(model, ids, [0, start, start + 1, start + 4, start + 10])
    wanted = patch_model(fresh_bias_model(kind), "linear", bucket / TRAINED_LENGTH)
    torch.testing.assert_close(decoded, logits(wanted, ids), **ROUNDING)


@pytest.fixture
def compiler():
    """No graphs of other tests, and none left to them: there is a limit for each function."""
    torch.compiler.reset()
    yield torch.compiler
    torch.compiler.reset()


@pytest.mark.parametrize("method", ["dynamic_ntk", "longrope"])
@pytest.mark.parametrize("cache_kind", ["dynamic", "static"])
def test_a_compiled_loop_stays_one_graph_within_a_bucket(method, cache_kind, compiler):
    """As many graphs as the unpatched model, and the numbers of the loop that is not compiled."""
    ids = token_ids(2, 60)
    borders = [0, 40, 41, 42, 43, 50, 60]
    graphs, answers = [], []
    for model in (fresh_model("llama"), dynamic("llama", method)):
        compiler.reset()
        counters.clear()
        compiled = torch.compile(model, backend="eager")
        cache = make_cache(model, cache_kind, 64)
        answers.append(step_by_step(compiled, ids, borders, cache)[0])
        assert not counters["graph_break"]
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] <= graphs[0] + 1
    expected, _ = step_by_step(
        dynamic("llama", method), ids, borders, make_cache(model, cache_kind, 64)
    )
    torch.testing.assert_close(answers[1], expected, **ROUNDING)


@pytest.mark.parametrize("method", ["dynamic_ntk", "longrope"])
@pytest.mark.usefixtures("compiler")
def test_a_compiled_loop_goes_on_past_its_bucket(method):
    ids = token_ids(2, 70)
    borders = [0, 30, 31, 32, 33, 34, 35, 60, 64, 65, 66, 70]
    compiled = torch.compile(dynamic("llama", method), backend="eager")
    found, _ = step_by_step(compiled, ids, borders)
    expected, _ = step_by_step(dynamic("llama", method), ids, borders)
    torch.testing.assert_close(found, expected, **ROUNDING)
