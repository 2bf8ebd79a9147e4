"""Models with a table of positions, patched to read more than the table has."""

import pytest
import torch
from decoding import in_pieces, make_cache
from peft import LoraConfig, get_peft_model
from replacement_cells import ABSOLUTE_CELLS, answers, fresh, replaced
from tiny_bias_models import assert_near
from tiny_models import token_ids
from tiny_table_models import CAUSAL_KINDS, ENCODER_KINDS, KINDS, TABLES

from ropepatch import patch_info, patch_model, patched, unpatch_model, verify
from ropepatch.errors import LengthError

# A hook that refuses a call must not raise a second time on the way out, of which torch warns.
pytestmark = pytest.mark.filterwarnings("error:module forward hook")
SHORT = token_ids(2, 32)
LONG = token_ids(2, 64)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_CELL = pytest.mark.parametrize("cell", ABSOLUTE_CELLS, ids=str)


@EVERY_KIND
@pytest.mark.parametrize("padding", ["none", "right"])
def test_linear_at_factor_one_is_bit_identical(kind, padding):
    mask = torch.ones_like(SHORT)
    mask[1, 20:] = 0
    more = {} if padding == "none" else {"attention_mask": mask}
    model = fresh(kind)
    before = answers(model, SHORT, **more)
    with patched(model, "linear", 1):
        seen = answers(model, SHORT, **more)
    if kind == "gpt_neo":  # whose own attention ends with its table
        assert_near(seen[mask.bool()], before[mask.bool()])
    else:
        assert torch.equal(seen, before)


@EVERY_KIND
def test_linear_gives_every_second_position_the_row_it_was_trained_on(kind):
    model = patch_model(fresh(kind), "linear", 2)
    path, offset = TABLES[kind]
    table = model.get_submodule(path)
    rows = table.weight[offset:]
    places = torch.arange(64)[None]
    made = table(*table_arguments(kind, places, offset))[0]
    assert torch.equal(made[0::2], rows)
    torch.testing.assert_close(made[1:-1:2], (rows[:-1] + rows[1:]) / 2, rtol=0, atol=1e-7)
    assert torch.equal(made[-1], rows[-1])  # beyond the last row there is none to blend with


def table_arguments(kind, places, offset):
    """OPT counts positions by the mask unless it is told them."""
    return (torch.ones_like(places), 0, places) if kind == "opt" else (places + offset,)


@EVERY_CELL
def test_the_whole_patched_length_can_be_read_and_stock_reads_none_of_it(cell):
    with pytest.raises((IndexError, RuntimeError)):
        answers(fresh(cell.kind), LONG)
    model = replaced(cell)
    assert answers(model, LONG).isfinite().all()
    assert patch_info(model).max_position_embeddings == 64
    unpatch_model(model)
    with pytest.raises((IndexError, RuntimeError)):
        answers(model, LONG)


LIMITED = [cell for cell in ABSOLUTE_CELLS if cell.method == "linear"]
# These keep one thing or another for every position, whatever makes the positions.
LIMITED += [cell for cell in ABSOLUTE_CELLS if cell.kind in ENCODER_KINDS and cell not in LIMITED]


@pytest.mark.parametrize("cell", LIMITED, ids=str)
def test_one_token_more_than_the_patched_length_is_refused_with_what_to_do(cell):
    model = replaced(cell)
    with pytest.raises(
        LengthError, match=r"64.*patch.*\(factor= or target_length=\), or read fewer"
    ):
        answers(model, token_ids(1, 65))
    assert answers(model, LONG).isfinite().all()


UNLIMITED = [
    cell for cell in ABSOLUTE_CELLS if cell.kind in CAUSAL_KINDS and cell.method != "linear"
]


@pytest.mark.parametrize("cell", UNLIMITED, ids=str)
def test_what_is_made_for_any_position_has_no_end(cell):
    assert answers(replaced(cell), token_ids(1, 200)).isfinite().all()


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_decoding_beyond_the_patched_length_is_refused(kind):
    model = patch_model(fresh(kind), "linear", 2)
    ids = token_ids(1, 65)
    cache = make_cache(model, "dynamic", 0)
    in_pieces(model, ids, None, cache, [0, 63, 64])
    with pytest.raises(LengthError, match="position 64"):
        model(input_ids=ids[:, 64:], past_key_values=cache)


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
@pytest.mark.parametrize("method", ["linear", "sinusoidal", "kerple_log"])
def test_generate_goes_on_to_the_patched_length(kind, method):
    model = patch_model(fresh(kind), method, 2)
    model.generation_config.max_length = 64
    out = model.generate(SHORT, do_sample=False, min_length=64)
    assert out.shape == (2, 64)


@EVERY_KIND
def test_the_table_trains_through_its_interpolation(kind):
    model = patch_model(fresh(kind), "linear", 2)
    path, offset = TABLES[kind]
    cache = {"use_cache": False} if model.can_generate() else {}
    model(input_ids=LONG, **cache).logits.square().mean().backward()
    gradient = model.get_submodule(path).weight.grad
    assert (gradient[offset:].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("cell", [c for c in ABSOLUTE_CELLS if c.method != "linear"], ids=str)
def test_a_table_that_nobody_reads_does_not_train(cell):
    model = replaced(cell)
    path, _ = TABLES[cell.kind]
    assert not model.get_submodule(path).weight.requires_grad
    unpatch_model(model)
    assert model.get_submodule(path).weight.requires_grad


@EVERY_KIND
@pytest.mark.parametrize("target", [33, 48, 100])
def test_a_target_length_need_not_be_a_multiple(kind, target):
    model = patch_model(fresh(kind), "linear", target_length=target)
    assert patch_info(model).max_position_embeddings == target
    assert answers(model, token_ids(1, target)).isfinite().all()
    with pytest.raises(LengthError):
        answers(model, token_ids(1, target + 1))
    assert verify(model).method == "linear"


def test_one_table_model_with_a_row_of_another_length_is_measured_in_tokens():
    """RoBERTa's config counts the two rows before position 0."""
    model = patch_model(fresh("roberta"), "linear", 2)
    info = patch_info(model)
    assert (info.original_max_position_embeddings, info.max_position_embeddings) == (32, 64)
    assert model.config.max_position_embeddings == 66


def test_padding_keeps_the_row_of_padding():
    """RoBERTa's pads have a position of their own, before position 0."""
    ids, mask = SHORT.clone(), torch.ones_like(SHORT)
    ids[1, 20:], mask[1, 20:] = 1, 0
    model = patch_model(fresh("roberta"), "linear", 2)
    embeddings = model.roberta.embeddings.position_embeddings
    assert torch.equal(embeddings(torch.tensor([[1]]))[0, 0], embeddings.weight[1])
    alone = answers(model, ids[1:, :20])[0]
    assert_near(answers(model, ids, attention_mask=mask)[1, :20], alone)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bert"])
def test_a_cell_is_the_same_in_bfloat16_whichever_comes_first(kind):
    for method in ("linear", "sinusoidal"):
        first = patch_model(fresh(kind), method, 2).to(torch.bfloat16)
        last = patch_model(fresh(kind).to(torch.bfloat16), method, 2)
        assert torch.equal(answers(first, LONG), answers(last, LONG))


def test_peft_trains_a_copy_of_an_interpolated_table_and_of_nothing_else():
    model = patch_model(fresh("gpt2"), "linear", 2)
    before = sum(parameter.numel() for parameter in model.parameters())
    config = LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["wpe"])
    wrapped = get_peft_model(model, config)
    copied = wrapped.base_model.model.transformer.wpe.modules_to_save["default"]
    assert sum(parameter.numel() for parameter in copied.parameters()) == copied.weight.numel()
    held = {id(module) for module in wrapped.modules()}
    assert all(id(module) in held for module in copied.modules())
    assert vars(copied)["forward"].module is copied
    assert vars(copied)["forward"].stack is None
    wrapped(SHORT, labels=SHORT).loss.backward()
    assert copied.weight.grad.abs().sum() > 0
    adapters = sum(p.numel() for name, p in wrapped.named_parameters() if "lora_" in name)
    total = sum(parameter.numel() for parameter in wrapped.parameters())
    assert total == before + adapters + copied.weight.numel()


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_what_a_parent_keeps_for_every_position_may_be_copied_and_moved(kind):
    model = patch_model(fresh(kind), "linear", 2)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.clone())  # as `to(device)` does
    verify(model)
    assert_near(answers(unpatch_model(model), SHORT), answers(fresh(kind), SHORT))
