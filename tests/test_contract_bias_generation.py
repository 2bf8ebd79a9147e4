"""Models with score biases beyond their trained length: caches, decoding, and the lengths of rows."""

import pytest
import torch
from covering import each_pair, each_value
from decoding import in_pieces, make_cache
from tiny_bias_models import (
    ALIBI_KINDS,
    KINDS,
    ONE_EACH,
    RELATIVE_KINDS,
    TRAINED_LENGTH,
    answers,
    assert_near,
    fresh_bias_model,
    inputs,
    padded,
    real,
)
from tiny_models import token_ids

from ropepatch import patch_model

LENGTH = 48
ONE_BY_ONE = [0, *range(LENGTH - 3, LENGTH + 1)]  # a prefill, then three tokens
CHUNKS = [0, 20, 33, 34, LENGTH]
METHODS = [(kind, "linear") for kind in ONE_EACH] + [("bloom", "ntk"), ("t5", "log")]
EVERY_METHOD = pytest.mark.parametrize(("kind", "method"), METHODS)


@each_pair(
    case=METHODS,
    cache=["dynamic", "static"],
    borders=[ONE_BY_ONE, CHUNKS],
    padding=["none", "left", "right"],
)
def test_a_cache_gives_the_logits_of_one_full_forward(case, cache, borders, padding):
    kind, method = case
    ids, mask = padded(LENGTH, padding)
    model = patch_model(fresh_bias_model(kind), method, 4)
    expected = real(answers(model, ids, mask), mask)
    # A static cache has room for more than it is given.
    pieces = in_pieces(model, ids, mask, make_cache(model, cache, LENGTH + 7), borders)
    assert_near(real(pieces, mask), expected)


@pytest.mark.parametrize("kind", ["bloom", "falcon"])
@pytest.mark.parametrize("kernel", ["folded", "toeplitz", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_every_kernel_prefills_in_chunks(kind, kernel, cache):
    ids, mask = padded(LENGTH, "left")
    expected = real(answers(patch_model(fresh_bias_model(kind), "linear", 4), ids, mask), mask)
    model = patch_model(fresh_bias_model(kind), "linear", 4, attention=kernel)
    pieces = in_pieces(model, ids, mask, make_cache(model, cache, LENGTH + 7), CHUNKS)
    assert_near(real(pieces, mask), expected)


def generated(model, ids, mask, **more):
    """Six more tokens, always: whether they agree should not hang on an early end."""
    arguments = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **more}
    return model.generate(input_ids=ids, attention_mask=mask, **arguments)


@EVERY_METHOD
@pytest.mark.parametrize("padding", ["none", "left"])
def test_greedy_decoding_is_the_same_with_any_cache_and_with_none(kind, method, padding):
    ids, mask = padded(TRAINED_LENGTH + 4, padding)
    model = patch_model(fresh_bias_model(kind), method, 4)
    uncached = generated(model, ids, mask, use_cache=False)
    assert torch.equal(generated(model, ids, mask), uncached)
    assert torch.equal(generated(model, ids, mask, cache_implementation="static"), uncached)


@each_value(kind=ONE_EACH, padding=["none", "left"])
def test_beam_search_is_the_same_with_and_without_a_cache(kind, padding):
    ids, mask = padded(TRAINED_LENGTH + 4, padding)
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    cached = generated(model, ids, mask, num_beams=3)
    assert torch.equal(cached, generated(model, ids, mask, num_beams=3, use_cache=False))


@pytest.mark.parametrize("kind", ONE_EACH)
def test_generate_at_factor_one_gives_stocks_tokens(kind):
    ids, mask = padded(20, "left")
    reference = fresh_bias_model(kind)
    if kind == "falcon":
        reference.config._attn_implementation = "sdpa"  # its eager code adds the bias twice
    expected = generated(reference, ids, mask)
    model = patch_model(fresh_bias_model(kind), "linear", 1)
    assert torch.equal(generated(model, ids, mask), expected)


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_a_padded_encoder_stays_padded_while_the_decoder_generates(kind):
    ids, mask = padded(LENGTH, "right")
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    together = generated(model, ids, mask)[1]
    alone = generated(model, ids[1:, mask[1].bool()], None)[0]
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", ALIBI_KINDS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_dynamic_linear_leaves_a_short_row_beside_a_long_one_unscaled(kind, padding):
    ids, mask = padded(LENGTH, padding, pads=LENGTH - TRAINED_LENGTH)
    model = patch_model(fresh_bias_model(kind), "dynamic_linear", 4)
    unscaled = patch_model(fresh_bias_model(kind), "linear", 1)
    kept = mask[1].bool()
    expected = answers(unscaled, ids[1:, kept])[0]
    assert_near(answers(model, ids, mask)[1, kept], expected)


@pytest.mark.parametrize("kind", ALIBI_KINDS)
def test_dynamic_linear_has_no_memory_of_longer_calls(kind):
    model, short = patch_model(fresh_bias_model(kind), "dynamic_linear", 4), token_ids(1, 40)
    before = answers(model, short)
    answers(model, token_ids(1, 100))
    generated(model, token_ids(1, 60), None)
    assert torch.equal(answers(model, short), before)


@each_pair(
    kind=ALIBI_KINDS,
    cache=[{}, {"use_cache": False}, {"cache_implementation": "static"}],
    padding=["none", "left"],
)
def test_dynamic_linear_keeps_one_scale_over_a_whole_request(kind, cache, padding):
    """Every score is that of the static method at the row's final length."""
    ids, mask = padded(TRAINED_LENGTH - 2, padding)
    model = patch_model(fresh_bias_model(kind), "dynamic_linear", 4)
    more = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 20}
    out = generated(model, ids, mask, min_new_tokens=20, **more, **cache)
    scores = torch.stack(out.logits, 1)
    for row in range(2):
        start = 0 if mask is None else int((mask[row] == 0).sum())
        sequence = out.sequences[row : row + 1, start:]
        factor = sequence.shape[1] / TRAINED_LENGTH
        static = patch_model(fresh_bias_model(kind), "linear", factor)
        expected = answers(static, sequence)[0, ids.shape[1] - start - 1 : -1]
        assert_near(scores[row], expected)


@pytest.mark.parametrize("kind", ["bloom", "falcon"])
def test_beams_of_dynamic_linear_are_the_same_with_and_without_a_cache(kind):
    ids, mask = padded(TRAINED_LENGTH - 2, "left")
    model = patch_model(fresh_bias_model(kind), "dynamic_linear", 4)
    cached = generated(model, ids, mask, num_beams=2)
    assert torch.equal(cached, generated(model, ids, mask, num_beams=2, use_cache=False))


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_may_be_given_in_place_of_tokens(kind):
    ids, mask = padded(LENGTH, "right")
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    arguments = inputs(model, ids, mask)
    arguments["inputs_embeds"] = model.get_input_embeddings()(arguments.pop("input_ids"))
    with torch.no_grad():
        out = model(**arguments, use_cache=False).logits
    assert_near(real(out, mask), real(answers(model, ids, mask), mask))
