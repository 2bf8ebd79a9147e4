"""Length-dependent methods: every row by its own length, no history, no leaks."""

import pytest
import torch
from covering import each_pair, each_value
from decoding import PADDINGS, make_batch
from loops import EVERY_METHOD, METHODS, STATIC, dynamic, in_two_threads, options
from stock_models import by_divisors, scaled_config
from tiny_models import KINDS, TRAINED_LENGTH, fresh_model, logits, tiny_model, token_ids

from ropepatch import patch_model, patched

ROUNDING = {"atol": 1e-5, "rtol": 0}
# In a mixture of experts the rows share matrix products, so that a neighbour can change the last bit.
MIXTURES = ("mixtral", "qwen3_moe")
PADDED = {"padding": ["left", "right"], "positions": [True, False]}
LONG, SHORT = 48, 30  # tokens; the tiny models are trained to 32


@each_value(kind=[*KINDS, *KINDS], method=METHODS, length=[1, SHORT, TRAINED_LENGTH])
def test_a_row_of_at_most_the_trained_length_is_bit_identical_to_unpatched(kind, method, length):
    ids = token_ids(1, length)
    assert torch.equal(logits(dynamic(kind, method), ids), logits(fresh_model(kind), ids))


@each_value(kind=[*KINDS, *KINDS], method=METHODS, shift=1)
def test_a_row_beyond_the_trained_length_is_scaled(kind, method):
    ids = token_ids(1, LONG)
    change = logits(dynamic(kind, method), ids) - logits(fresh_model(kind), ids)
    assert change.abs().max() > 1e-3


@each_value(kind=[*KINDS, *KINDS], method=METHODS, **PADDED)
def test_a_short_row_beside_a_long_one_is_bit_identical_to_unpatched(
    kind, method, padding, positions
):
    batch = make_batch(padding, LONG, pads=LONG - SHORT)
    arguments = {"attention_mask": batch.mask}
    if positions:
        arguments["position_ids"] = (batch.mask.cumsum(-1) - 1).clamp(min=0)
    ours = logits(dynamic(kind, method), batch.ids, **arguments)[1]
    unpatched = logits(fresh_model(kind), batch.ids, **arguments)[1]
    real = batch.mask[1].bool()
    if kind in MIXTURES:
        torch.testing.assert_close(ours[real], unpatched[real], atol=1e-6, rtol=0)
    else:
        assert torch.equal(ours[real], unpatched[real])


@each_value(kind=[*KINDS, *KINDS], method=METHODS, **PADDED, shift=1)
def test_a_padded_long_row_beside_a_longer_one_equals_itself_alone(
    kind, method, padding, positions
):
    batch = make_batch(padding, LONG + 5, pads=5)
    arguments = {"attention_mask": batch.mask}
    if positions:
        arguments["position_ids"] = (batch.mask.cumsum(-1) - 1).clamp(min=0)
    model = dynamic(kind, method)
    real = batch.mask[1].bool()
    alone = logits(model, batch.ids[1:, real])[0]
    torch.testing.assert_close(logits(model, batch.ids, **arguments)[1, real], alone, **ROUNDING)


@each_value(kind=KINDS, method=METHODS)
def test_a_short_row_after_a_long_one_is_as_on_a_fresh_model(kind, method):
    model = dynamic(kind, method)
    logits(model, token_ids(2, 100))
    model.generate(token_ids(1, LONG), max_new_tokens=2, do_sample=False)
    short = token_ids(2, SHORT, seed=1)
    assert torch.equal(logits(model, short), logits(fresh_model(kind), short))


@each_pair(kind=KINDS, method=list(STATIC))
def test_a_row_equals_the_static_method_at_the_factor_of_its_length(kind, method):
    ids = token_ids(2, LONG)
    static = patch_model(fresh_model(kind), STATIC[method], factor=LONG / TRAINED_LENGTH)
    torch.testing.assert_close(
        logits(dynamic(kind, method), ids, use_cache=False),
        logits(static, ids),
        atol=1e-6,
        rtol=0,
    )


@each_value(kind=KINDS, length=[SHORT, LONG], attention_factor=[1.0, 1.2])
def test_longrope_equals_transformers_own(kind, length, attention_factor):
    lists = options(kind, "longrope") | {"attention_factor": attention_factor}
    config = scaled_config(kind, "linear")
    native = by_divisors(lists["long_factor"], attention_factor)
    native["short_factor"] = lists["short_factor"]
    parameters = config.rope_parameters
    scaled = parameters.get("full_attention", parameters)
    scaled.update(native)
    ids = token_ids(2, length)
    ours = patch_model(fresh_model(kind), "longrope", 4, **lists)
    stock = tiny_model(kind, config=config)
    torch.testing.assert_close(logits(ours, ids), logits(stock, ids), **ROUNDING)


DECODING = {
    "greedy": ("none", {}),
    "left-padded": ("left", {}),
    "sampling": ("left", {"do_sample": True, "top_k": 5}),
    "beams": ("none", {"num_beams": 2}),
    "left-padded beams": ("left", {"num_beams": 3, "num_return_sequences": 2}),
    "static cache": ("left", {"cache_implementation": "static"}),
    "chunked prefill": ("left", {"prefill_chunk_size": 7}),
}
NOT_WITHOUT_CACHE = ("cache_implementation", "prefill_chunk_size")


def assert_cached_equals_uncached(kind, method, decoding):
    """Tokens are the same and their logits within rounding, in rows of very different lengths."""
    padding, more = DECODING[decoding]
    batch = make_batch(padding, TRAINED_LENGTH - 2, pads=20)
    model = dynamic(kind, method)
    arguments = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    arguments |= {"input_ids": batch.ids, "attention_mask": batch.mask}
    arguments |= {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    cached = model.generate(**arguments | more)
    more = {name: value for name, value in more.items() if name not in NOT_WITHOUT_CACHE}
    torch.manual_seed(0)
    uncached = model.generate(**arguments | more, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    for ours, theirs in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@each_value(kind=KINDS, decoding=list(DECODING))
def test_generate_is_the_same_with_and_without_cache_on_every_architecture(kind, decoding):
    assert_cached_equals_uncached(kind, "dynamic_ntk", decoding)


@each_pair(kind=["llama", "gemma3_text", "cohere"], method=METHODS, decoding=list(DECODING))
def test_generate_is_the_same_with_and_without_cache_by_every_method(kind, method, decoding):
    assert_cached_equals_uncached(kind, method, decoding)


@EVERY_METHOD
def test_assisted_generation_gives_what_the_model_gives_alone(method):
    model, assistant = (
        patch_model(tiny_model("llama", seed=seed), method, 4, **options("llama", method))
        for seed in (0, 1)
    )
    ids, arguments = token_ids(1, TRAINED_LENGTH - 2), {"max_new_tokens": 12, "do_sample": False}
    alone = model.generate(ids, **arguments)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **arguments), alone)


@EVERY_METHOD
def test_a_second_turn_goes_on_with_the_cache_of_the_first(method):
    """Two requests that end at the same length as one: the keys of the first were scaled for it."""
    model, ids = dynamic("llama", method), token_ids(1, 40)
    arguments = {"do_sample": False, "return_dict_in_generate": True}
    whole = model.generate(ids, max_new_tokens=24, min_new_tokens=24, **arguments)
    first = model.generate(ids, max_length=64, stopping_criteria=[StopAt(45)], **arguments)
    second = model.generate(
        first.sequences,
        past_key_values=first.past_key_values,
        max_new_tokens=19,
        min_new_tokens=19,
        **arguments,
    )
    assert torch.equal(second.sequences, whole.sequences)


@EVERY_METHOD
def test_generate_within_the_trained_length_is_unscaled(method):
    ids, arguments = token_ids(2, 20), {"max_new_tokens": 12, "do_sample": False}
    expected = fresh_model("llama").generate(ids, **arguments)
    assert torch.equal(dynamic("llama", method).generate(ids, **arguments), expected)


@EVERY_METHOD
def test_generate_past_the_trained_length_is_scaled_from_the_first_token(method):
    """The scores are those of a full forward at the final length."""
    ids = token_ids(1, TRAINED_LENGTH - 4)
    model = dynamic("llama", method)
    out = model.generate(
        ids,
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    full = logits(model, out.sequences, use_cache=False)[0, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.cat(out.logits), full, **ROUNDING)


@EVERY_METHOD
@pytest.mark.parametrize("padding", PADDINGS)
def test_training_and_evaluation_mode_give_the_same_logits(method, padding):
    batch = make_batch(padding, LONG)
    model = dynamic("llama", method)
    arguments = {"attention_mask": batch.mask, "use_cache": False}
    expected = logits(model, batch.ids, **arguments)
    assert torch.equal(logits(model.train(), batch.ids, **arguments), expected)


class StopAt:
    """Ends a generation early, at so many tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores, **arguments):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.tokens)


@EVERY_METHOD
def test_threads_that_share_a_model_get_what_they_get_alone(method):
    model = dynamic("llama", method)
    rows = [token_ids(1, SHORT), token_ids(1, LONG)]
    alone = [logits(model, row) for row in rows]

    def work(index):
        return [logits(model, rows[index]) for _ in range(3)][-1]

    together = in_two_threads(model, work)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@EVERY_METHOD
def test_two_models_in_one_thread_do_not_see_each_other(method):
    first, second = dynamic("llama", method), dynamic("gpt_neox", method)
    expected = logits(second, token_ids(1, SHORT))
    logits(first, token_ids(1, LONG))
    assert torch.equal(logits(second, token_ids(1, SHORT)), expected)
    with patched(fresh_model("llama"), "linear", 2) as third:
        logits(third, token_ids(1, LONG))
    assert torch.equal(logits(second, token_ids(1, SHORT)), expected)
