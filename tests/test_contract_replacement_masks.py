"""Replaced encodings with what a call tells of masks and positions: gone by, or refused."""

import pytest
import torch
from replacement_cells import IDS, Cell, answers, replaced
from tiny_models import tiny_model, token_ids

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
        with pytest.raises(MaskError, match="position_ids skip or start again"):
            model(ids, position_ids=skipping, **arguments)
    with pytest.raises(MaskError, match="leave out the mask"):
        model(
            ids,
            position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]),
            attention_mask=torch.ones_like(ids),
        )
    model(ids, position_ids=torch.arange(4, 10)[None], attention_mask=torch.ones_like(ids))


def test_vectors_by_position_follow_positions_that_skip():
    model = patch_model(tiny_model("llama"), "sinusoidal", 2)
    ids, mask = token_ids(1, 6), torch.ones(1, 6, dtype=torch.long)
    skipping = torch.tensor([[0, 1, 2, 20, 21, 22]])
    with torch.no_grad():
        told = model(ids, position_ids=skipping, attention_mask=mask).logits
        counted = model(ids, attention_mask=mask).logits
    assert not torch.allclose(told, counted)
