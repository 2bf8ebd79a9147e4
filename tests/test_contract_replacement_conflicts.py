"""A replaced encoding beside other patches, other attention, and damaged checkpoints."""

import pytest
import torch
from replacement_cells import IDS, Cell, answers, fresh, replaced
from safetensors.torch import load_file, save_file

from ropepatch import (
    load_pretrained,
    patch_info,
    patch_model,
    patched,
    save_pretrained,
    unpatch_model,
    verify,
)
from ropepatch.errors import AlreadyPatchedError, PatchError, PatchVerificationError, SidecarError

SHORT = IDS[:, :30]  # within the tables of the unpatched models
KINDS = ("llama", "bloom", "t5", "gpt2", "bert")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_attention_that_is_set_after_the_patch_is_refused_at_the_next_call(kind, name):
    model = replaced(Cell(kind, "kerple_log"))
    expected = answers(model)
    model.set_attn_implementation(name)
    with pytest.raises(PatchError, match=rf"was set to '{name}' after the patch.*unpatch_model"):
        answers(model)
    with pytest.raises(PatchVerificationError, match=r"overwritten at .*_attn_implementation"):
        verify(model)
    model.set_attn_implementation("ropepatch")
    assert torch.equal(answers(model), expected)


PAIRS = [
    ("llama", "kerple_log", "t5_bias"),
    ("llama", "kerple_log", "kerple_log"),
    ("llama", "xpos", "nope"),
    ("llama", "learned", "yarn"),
    ("llama", "yarn", "alibi"),
    ("bloom", "linear", "t5_bias"),
    ("bloom", "t5_bias", "linear"),
    ("t5", "log", "alibi"),
    ("t5", "learned", "linear"),
    ("gpt2", "linear", "kerple_log"),
    ("gpt2", "kerple_log", "sinusoidal"),
    ("bert", "sinusoidal", "linear"),
]


@pytest.mark.parametrize(("kind", "first", "second"), PAIRS)
def test_one_patch_takes_the_place_of_another_only_when_asked_to(kind, first, second):
    model = replaced(Cell(kind, first))
    with pytest.raises(AlreadyPatchedError, match=rf"'{first}', factor 2.*replace=True"):
        patch_model(model, second, 2)
    patch_model(model, second, 2, replace=True)
    once = patch_model(fresh(kind), second, 2)
    assert torch.equal(answers(model), answers(once))
    assert list(model.state_dict()) == list(once.state_dict())
    assert patch_info(model) == patch_info(once)
    unpatch_model(model)
    assert torch.equal(answers(model, SHORT), answers(fresh(kind), SHORT))


@pytest.mark.parametrize(("first", "second"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_a_patch_of_one_side_does_not_take_out_that_of_the_other(first, second):
    model = replaced(Cell("t5", "kerple_log", {"part": first}))
    expected, about = answers(model), patch_info(model)
    match = rf"the {first} is patched with 'kerple_log'.*unpatch_model first, or give part='both'"
    with pytest.raises(AlreadyPatchedError, match=match):
        patch_model(model, "alibi", 2, part=second, replace=True)
    assert torch.equal(answers(model), expected)
    assert patch_info(model) == about


@pytest.mark.parametrize(
    ("first", "second"), [("encoder", "encoder"), ("decoder", "both"), ("both", "decoder")]
)
def test_a_patch_of_the_same_or_of_both_sides_may_be_replaced(first, second):
    model = replaced(Cell("t5", "kerple_log", {"part": first}))
    patch_model(model, "alibi", 2, part=second, replace=True)
    once = patch_model(fresh("t5"), "alibi", 2, part=second)
    assert torch.equal(answers(model), answers(once))


@pytest.mark.parametrize("kind", KINDS)
def test_patched_takes_the_replacement_out_again_also_when_its_body_raises(kind):
    model = fresh(kind)
    before = answers(model, SHORT)
    with pytest.raises(ZeroDivisionError), patched(model, "kerple_log", 2):
        raise ZeroDivisionError
    assert torch.equal(answers(model, SHORT), before)


DAMAGE = {
    "missing": lambda held, name: held.pop(name),
    "of shape": lambda held, name: held.update({name: torch.ones(3)}),
}
NAMED = {
    Cell("llama", "kerple_log"): "model.kerple_log.r2",
    Cell("bloom", "t5_bias"): "transformer.t5_bias.weight",
    Cell("t5", "learned", {"part": "decoder"}): "decoder.learned.weight",
    Cell("gpt2", "scaled_sinusoidal"): "transformer.scaled_sinusoidal.scalar",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("cell", NAMED, ids=str)
def test_a_checkpoint_without_its_new_weights_is_refused(cell, damage, tmp_path):
    file = save_pretrained(replaced(cell), tmp_path / "model") / "model.safetensors"
    held = load_file(file)
    DAMAGE[damage](held, NAMED[cell])
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(SidecarError, match=rf"{NAMED[cell]}, which the patch.*is {damage}.*save"):
        load_pretrained(tmp_path / "model")
