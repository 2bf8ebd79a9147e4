"""Replaced encodings, every cell of the table: equal to their definition, undone, saved and verified."""

import pytest
import torch
from dense_replacements import dense_logits
from replacement_cells import (
    CELLS,
    IDS,
    answers,
    called,
    cells_of_every_path,
    few_cells,
    fresh,
    placed,
    replaced,
)
from tiny_bias_models import assert_near
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from ropepatch import (
    load_pretrained,
    patch_info,
    patch_model,
    save_pretrained,
    unpatch_model,
    verify,
)
from ropepatch.errors import PatchVerificationError

SHORT = IDS[:, :30]  # within the tables of the unpatched models


@pytest.mark.parametrize("cell", cells_of_every_path(), ids=str)
def test_logits_are_those_of_the_definition(cell, monkeypatch):
    model = replaced(cell)
    with torch.no_grad():
        expected = dense_logits(cell, placed(model, cell.method), monkeypatch)
    assert_near(answers(model), expected)


@pytest.mark.parametrize("cell", few_cells(), ids=str)
def test_under_autocast_it_answers_and_trains_as_in_float32(cell):
    model = replaced(cell)
    exact = answers(model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = called(model)
        rounded.float().square().mean().backward()
    assert (rounded - exact).norm() < 0.06 * exact.norm()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found
    assert all(gradient.isfinite().all() for gradient in found)


def snapshot(model: PreTrainedModel) -> tuple[object, ...]:
    """Everything about a model that a patch might change and must put back, but its logits."""
    modules = dict(model.named_modules())
    configs = [config for config in map(config_of, modules.values()) if config is not None]
    return (
        list(model.state_dict()),
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: set(vars(module)) for name, module in modules.items()},
        {name: {key: id(b) for key, b in m._buffers.items()} for name, m in modules.items()},
        {name: dict(module._forward_pre_hooks) for name, module in modules.items()},
        {name: dict(module._forward_hooks) for name, module in modules.items()},
        [dict(vars(config)) for config in configs],
        model.generation_config.to_dict() if model.can_generate() else None,
    )


def config_of(module: torch.nn.Module) -> object:
    return getattr(module, "config", None)


@pytest.mark.parametrize("cell", few_cells(1), ids=str)
def test_unpatching_restores_everything_bit_exactly(cell):
    model = fresh(cell.kind)
    logits, before = answers(model, SHORT), snapshot(model)
    replaced(cell, model)
    answers(model)
    unpatch_model(model)
    assert snapshot(model) == before
    assert torch.equal(answers(model, SHORT), logits)


def auto(model: PreTrainedModel) -> type:
    if model.config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM if model.can_generate() else AutoModelForMaskedLM


@pytest.mark.parametrize("cell", few_cells(2), ids=str)
def test_a_checkpoint_comes_back_with_its_patch_and_never_without(cell, tmp_path):
    model = replaced(cell)
    directory = save_pretrained(model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"load it with ropepatch\.load_pretrained"):
        auto(model).from_pretrained(directory)
    loaded = load_pretrained(directory).eval()
    assert torch.equal(answers(loaded), answers(model))
    assert patch_info(loaded) == patch_info(model)
    assert list(loaded.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("cell", few_cells(3), ids=str)
def test_verify_passes_as_patched_and_trained(cell):
    model = patch_model(fresh(cell.kind), cell.method, 2, **cell.options)
    assert verify(model).method == cell.method
    found = verify(replaced(cell))
    assert found.live == "patched"
    assert found.logit_change > 1e-4


HOLDERS = [
    cell
    for cell in CELLS
    if cell.method not in ("nope", "xpos", "linear")
    and cell.kind in ("llama", "bloom", "t5", "bert")
]


@pytest.mark.parametrize("cell", HOLDERS, ids=str)
def test_verify_fails_when_the_module_of_the_encoding_is_taken_out(cell):
    model = replaced(cell)
    stack = next(m for m in model.modules() if cell.method in dict(m.named_children()))
    delattr(stack, cell.method)
    with pytest.raises(PatchVerificationError, match=rf"overwritten at .*\.{cell.method}"):
        verify(model)
