"""Replaced encodings with padding, caches, packed documents and generation."""

from dataclasses import replace

import pytest
import torch
from covering import each_pair
from decoding import in_pieces, make_cache
from replacement_cells import (
    FACTOR,
    IDS,
    LENGTH,
    ON_ROTARY,
    Cell,
    answers,
    crossed,
    fresh,
    replaced,
)
from tiny_bias_models import RELATIVE_KINDS, assert_near, padded, real
from tiny_models import KINDS, tiny_model
from tiny_table_models import CAUSAL_KINDS, ENCODER_KINDS
from tiny_table_models import KINDS as TABLE_KINDS

from ropepatch import patch_model

# A chunk, another one, then tokens one by one.
BORDERS = [0, 7, 20, *range(LENGTH - 3, LENGTH + 1)]
PAIRED = (
    "cohere",
    "glm4",
    "helium",
    "phi",
)  # which channels are rotated together, or at all, differs
BOTH = {"part": "both"}

SOME_ROTARY = [Cell(kind, *each) for kind in ("llama", "gemma3_text") for each in ON_ROTARY]
ALL_ROTARY = [
    Cell(kind, method) for kind in KINDS for method in ("kerple_log", "scaled_sinusoidal")
]
ALL_ROTARY += [Cell(kind, "xpos") for kind in PAIRED]
ALIBI = [
    Cell(kind, method) for kind in ("bloom", "mpt", "falcon") for method in ("kerple_log", "nope")
]
RELATIVE = [Cell(k, method, BOTH) for k in ("t5", "umt5") for method in ("kerple_log", "learned")]
TABLE = [
    Cell(kind, method)
    for kind in TABLE_KINDS
    for method in ("linear", "sinusoidal", "kerple_log", "nope")
]
CAUSAL_TABLE = [cell for cell in TABLE if cell.kind in CAUSAL_KINDS]
# Stock OPT does not take position_ids for document borders.
PACKING = [cell for cell in CAUSAL_TABLE if cell.kind != "opt"]
CACHE_AND_PADDING = [("dynamic", "left"), ("static", "none")]
GENERATING = [*SOME_ROTARY[:12], *ALIBI, *RELATIVE, *CAUSAL_TABLE]
DECODERS = [*ALL_ROTARY, *ALIBI, *RELATIVE, *CAUSAL_TABLE]


def positions_of(cell, mask):
    """What `generate` tells a model with a table of its own, which else would count padding."""
    if cell.kind not in CAUSAL_KINDS or mask is None:
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def answers_to(cell, model, ids, mask):
    more = {} if mask is None else {"attention_mask": mask, **positions_of(cell, mask)}
    if mask is not None and cell.kind in RELATIVE_KINDS:
        more["decoder_attention_mask"] = mask
    return answers(model, ids, **more)


def assert_cache_agrees(cell, cache, padding):
    ids, mask = padded(LENGTH, padding)
    model = replaced(cell)
    expected = real(answers_to(cell, model, ids, mask), mask)
    # A static cache has room for more than it is given.
    cache = make_cache(model, cache, LENGTH + 7)
    pieces = in_pieces(model, ids, mask, cache, BORDERS, **positions_of(cell, mask))
    assert_near(real(pieces, mask), expected)


@each_pair(
    cell=[Cell("llama", *each) for each in ON_ROTARY],
    kind=["llama", "gemma3_text"],
    cache=["dynamic", "static"],
    padding=["none", "left", "right"],
)
def test_every_method_gives_the_same_with_every_cache_and_padding(cell, kind, cache, padding):
    assert_cache_agrees(replace(cell, kind=kind), cache, padding)


@pytest.mark.parametrize(("cell", "way"), crossed(DECODERS, CACHE_AND_PADDING), ids=str)
def test_every_architecture_gives_the_same_with_a_cache(cell, way):
    assert_cache_agrees(cell, *way)


# Encoders with a table count padding as positions, before a patch as after it.
OF_ENCODERS = [c for c in TABLE if c.kind in ENCODER_KINDS and c.method == "kerple_log"]
LEFT = [(cell, "left") for cell in [*DECODERS, *OF_ENCODERS]]
RIGHT = [(cell, "right") for cell in [*ALIBI, *RELATIVE, *TABLE]]
ROTARY = crossed(SOME_ROTARY, ["left", "right"])


@pytest.mark.parametrize(("cell", "padding"), ROTARY + LEFT + RIGHT, ids=str)
def test_a_padded_row_equals_itself_alone(cell, padding):
    ids, mask = padded(LENGTH, padding)
    model = replaced(cell)
    kept = mask[1].bool()
    alone = answers(model, ids[1:, kept])[0]
    assert_near(answers_to(cell, model, ids, mask)[1, kept], alone)


@pytest.mark.parametrize("cell", [*SOME_ROTARY, *ALL_ROTARY, *PACKING], ids=str)
def test_packed_documents_do_not_see_each_other(cell):
    model = replaced(cell)
    borders = ((0, 15, LENGTH), (0, 28, LENGTH))  # rows need not be packed alike
    positions = torch.stack(
        [
            torch.cat([torch.arange(middle), torch.arange(end - middle)])
            for _, middle, end in borders
        ]
    )
    packed = answers(model, IDS, position_ids=positions)
    for row, (start, middle, end) in enumerate(borders):
        for first, last in ((start, middle), (middle, end)):
            alone = answers(model, IDS[row : row + 1, first:last])[0]
            assert_near(packed[row, first:last], alone)


@pytest.mark.parametrize(("cell", "padding"), crossed(GENERATING, ["none", "left"]), ids=str)
def test_greedy_decoding_is_the_same_with_any_cache_and_with_none(cell, padding):
    """From within the trained length to beyond it."""
    ids, mask = padded(28, padding)
    model = replaced(cell)

    def generated(**more):
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            **more,
        )

    uncached = generated(use_cache=False)
    assert torch.equal(generated(), uncached)
    static = generated(cache_implementation="static", disable_compile=True)
    assert torch.equal(static, uncached)


@pytest.mark.parametrize("method", ["alibi", "kerple_log", "sandwich", "t5_bias", "xpos", "nope"])
def test_a_static_cache_of_a_window_alone_decodes_a_padded_row_as_by_itself(method):
    """Every layer of Mistral keeps 8 tokens, fewer than are read and than are padded."""
    model = replaced(Cell("mistral", method), tiny_model("mistral", sliding_window=8))
    ids, mask = padded(28, "left", pads=10)
    new = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    static = {"cache_implementation": "static", "disable_compile": True}
    together = model.generate(input_ids=ids, attention_mask=mask, **static, **new)
    alone = model.generate(input_ids=ids[1:, 10:], use_cache=False, **new)
    assert torch.equal(together[1, 10:], alone[0])


@pytest.mark.parametrize("cell", GENERATING, ids=str)
def test_embeddings_may_be_given_in_place_of_tokens(cell):
    model = replaced(cell)
    expected = answers(model)
    arguments = {"inputs_embeds": model.get_input_embeddings()(IDS)}
    if cell.kind in RELATIVE_KINDS:
        arguments["decoder_input_ids"] = IDS
    with torch.no_grad():
        assert_near(model(**arguments, use_cache=False).logits, expected)


# Where our attention runs; GPT-2, OPT, GPT-Neo, StableLM and Nemotron do not hand on to it who asks.
OURS = [cell for cell in SOME_ROTARY if cell.method in ("alibi", "kerple_log", "t5_bias", "xpos")]
OURS += [*ALIBI, *RELATIVE, *(Cell(kind, "kerple_log") for kind in TABLE_KINDS)]
OURS += [Cell(kind, "xpos") for kind in ("stablelm", "nemotron")]


@pytest.mark.parametrize("cell", OURS, ids=str)
def test_attentions_that_are_asked_for_sum_to_one_and_leave_the_logits_alone(cell):
    ids, mask = padded(LENGTH, "right")
    model = replaced(cell)
    more = {"decoder_input_ids": ids} if cell.kind in RELATIVE_KINDS else {}
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_attentions=True, **more)
    layers = out.decoder_attentions if cell.kind in RELATIVE_KINDS else out.attentions
    heads = model.config.num_attention_heads
    assert layers[0].shape == (2, heads, LENGTH, LENGTH)
    torch.testing.assert_close(layers[0].sum(-1), torch.ones_like(layers[0][..., 0]))
    plain = answers(model, ids, attention_mask=mask, **more)
    assert_near(real(out.logits, mask), real(plain, mask))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo", "bert"])
def test_attentions_that_the_config_asks_for_are_given_and_those_nobody_asks_for_are_not(kind):
    model = fresh(kind)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    model = patch_model(model, "alibi", FACTOR)
    with torch.no_grad():
        assert len(model(input_ids=IDS).attentions) == 2
        assert not model(input_ids=IDS, output_attentions=False).attentions
        quiet = patch_model(fresh(kind), "alibi", FACTOR)
        assert not quiet(input_ids=IDS).attentions
