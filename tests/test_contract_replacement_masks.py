"""Replaced encodings with what a call tells of masks and positions: gone by, or refused."""

import pytest
import torch
from loops import one_layer
from replacement_cells import IDS, Cell, answers, replaced
from tiny_models import tiny_model, token_ids
from transformers import DynamicCache

from ropepatch import patch_model
from ropepatch.errors import MaskError

SHORT = IDS[:, :30]


@pytest.mark.parametrize("kind", ["llama", "bloom", "gpt2", "bert"])
def test_a_mask_of_floats_is_refused_with_what_is_allowed(kind):
    model = replaced(Cell(kind, "kerple_log"))
    mask = torch.zeros(2, 1, 30, 30)
    with pytest.raises(MaskError, match=r"the attention mask is of torch\.float32.*allowed"):
        answers(model, SHORT, attention_mask=mask)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "bert"])
def test_a_bool_mask_of_four_dimensions_tells_all(kind):
    """Two documents without a view of each other."""
    model = replaced(Cell(kind, "kerple_log"))
    first = torch.arange(30) < 12
    mask = (first[:, None] == first)[None, None].expand(2, 1, -1, -1)
    if kind != "bert":
        mask = mask & torch.ones(30, 30, dtype=torch.bool).tril()
    if kind == "gemma3_text":  # half of whose layers see 16 tokens
        near = torch.ones(30, 30, dtype=torch.bool).triu(-15)
        mask = {"full_attention": mask, "sliding_attention": mask & near}
    seen = answers(model, SHORT, attention_mask=mask)
    for part in (slice(0, 12), slice(12, 30)):
        torch.testing.assert_close(
            seen[:, part], answers(model, SHORT[:, part]), atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("method", ["alibi", "kerple_log", "sandwich", "t5_bias", "xpos"])
@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_a_mask_of_four_dimensions_tells_of_windows_too_as_in_stock(kind, method):
    """A window of 8 tokens is then as good as one of 64, which is longer than the text."""
    near, far = (
        replaced(Cell(kind, method), tiny_model(kind, sliding_window=window)) for window in (8, 64)
    )
    mask = torch.ones(30, 30, dtype=torch.bool).tril()[None, None]
    told = answers(near, SHORT, attention_mask=mask)
    torch.testing.assert_close(told, answers(far, SHORT), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(told, answers(near, SHORT), atol=1e-2)


@pytest.mark.parametrize("method", ["alibi", "xpos"])
def test_positions_that_skip_are_refused_where_tokens_are_counted(method):
    model = patch_model(tiny_model("llama"), method, 2)
    ids, skipping = token_ids(1, 6), torch.tensor([[0, 1, 2, 20, 21, 22]])
    for arguments in ({}, {"attention_mask": torch.ones_like(ids)}):
        with pytest.raises(MaskError, match=r"position_ids skip.*leave position_ids out"):
            model(ids, position_ids=skipping, **arguments)
    model(ids, position_ids=torch.arange(4, 10)[None], attention_mask=torch.ones_like(ids))


PACKED = torch.cat([torch.arange(12), torch.arange(18)])[None]
TOLD_APART = [
    Cell("llama", method) for method in ("alibi", "xpos", "nope", "sinusoidal", "learned")
]
TOLD_APART += [Cell("gpt2", "kerple_log"), Cell("gpt2", "nope"), Cell("gpt_neo", "sinusoidal")]
NOT_TOLD_APART = [Cell("opt", m) for m in ("alibi", "kerple_log", "t5_bias", "nope", "sinusoidal")]
NOT_TOLD_APART += [Cell("bert", "alibi"), Cell("falcon", "kerple_log")]


@pytest.mark.parametrize("cell", TOLD_APART, ids=str)
def test_packed_documents_that_a_cache_or_a_mask_would_join_are_refused(cell):
    model = replaced(cell)
    joined = [{}, {"past_key_values": DynamicCache(config=model.config), "use_cache": False}]
    joined += [{"attention_mask": torch.ones_like(SHORT), "use_cache": False}]
    for arguments in joined:
        with pytest.raises(MaskError, match="pass use_cache=False and no attention_mask"):
            model(SHORT, position_ids=PACKED, **arguments)


@pytest.mark.parametrize("cell", NOT_TOLD_APART, ids=str)
def test_packed_documents_are_refused_by_models_that_do_not_tell_them_apart(cell):
    with pytest.raises(MaskError, match="does not tell documents in one row apart; give each its"):
        answers(replaced(cell), SHORT, position_ids=PACKED)


@pytest.mark.parametrize("cell", TOLD_APART, ids=str)
def test_positions_may_count_on_from_a_cache_but_not_start_again(cell):
    model = replaced(cell)
    cache = DynamicCache(config=model.config)
    first, rest = torch.arange(30)[None].split([12, 18], 1)
    answers(model, SHORT[:, :12], position_ids=first, past_key_values=cache, use_cache=True)
    with pytest.raises(MaskError, match="start again at 0"):
        answers(model, SHORT[:, 12:], position_ids=rest - 12, past_key_values=cache)
    read_on = answers(model, SHORT[:, 12:], position_ids=rest, past_key_values=cache)
    torch.testing.assert_close(read_on, answers(model, SHORT)[:, 12:], atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_packed_documents_may_leave_the_cache_to_gradient_checkpointing():
    model = replaced(Cell("llama", "alibi"))
    alone = answers(model, SHORT[:, 12:])
    model.gradient_checkpointing_enable()
    packed = model.train()(SHORT, position_ids=PACKED).logits
    torch.testing.assert_close(packed[:, 12:], alone, atol=2e-5, rtol=1e-4)


def test_vectors_by_position_follow_positions_that_skip():
    model = patch_model(tiny_model("llama"), "sinusoidal", 2)
    ids, mask = token_ids(1, 6), torch.ones(1, 6, dtype=torch.long)
    skipping = torch.tensor([[0, 1, 2, 20, 21, 22]])
    with torch.no_grad():
        told = model(ids, position_ids=skipping, attention_mask=mask).logits
        counted = model(ids, attention_mask=mask).logits
    assert not torch.allclose(told, counted)


COUNTING = [Cell("llama", "alibi"), Cell("llama", "xpos"), Cell("opt", "t5_bias")]
COUNTING += [Cell(kind, "kerple_log") for kind in ("gpt2", "bert", "bloom", "mpt")]
COUNTING += [Cell("t5", "kerple_log", {"part": part}) for part in ("encoder", "decoder")]
GAP = torch.ones_like(SHORT)
GAP[1, 10:13] = 0


@pytest.mark.parametrize("cell", COUNTING, ids=str)
def test_padding_between_tokens_is_refused_where_it_would_count_as_distance(cell):
    name = "decoder_attention_mask" if cell.options.get("part") == "decoder" else "attention_mask"
    with pytest.raises(MaskError, match=r"row 1 .*padding between tokens.*pad on the left"):
        answers(replaced(cell), SHORT, **{name: GAP})


@pytest.mark.parametrize("cell", [Cell("llama", "nope"), Cell("bloom", "nope")], ids=str)
def test_padding_between_tokens_is_nothing_where_no_distance_counts(cell):
    model, kept = replaced(cell), GAP[1].bool()
    read = answers(model, SHORT, attention_mask=GAP)[1, kept]
    torch.testing.assert_close(read, answers(model, SHORT[1:, kept])[0], atol=2e-5, rtol=1e-4)


COMPILED = [Cell("llama", "xpos"), Cell("gemma3_text", "kerple_log")]
COMPILED += [Cell("gpt2", "t5_bias"), Cell("bert", "alibi")]


@pytest.mark.parametrize("cell", COMPILED, ids=str)
def test_compiled_without_mask_and_positions_it_is_one_graph(cell):
    torch.compiler.reset()  # models share code, of which only so many versions are kept
    model = replaced(cell)
    model = model if cell.kind == "gemma3_text" else one_layer(model)
    expected = answers(model, SHORT)
    more = {"use_cache": False} if model.can_generate() else {}
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(SHORT, **more).logits
    torch.testing.assert_close(compiled, expected, atol=2e-5, rtol=1e-4)
