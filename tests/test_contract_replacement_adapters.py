"""Replaced encodings and PEFT: trained beside LoRA, saved with the adapter, kept by a merge."""

import warnings

import pytest
import torch
from covering import each_value
from peft import LoraConfig, get_peft_model
from replacement_cells import IDS, Cell, answers, called, crossed, fresh, placed, replaced
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
from ropepatch.errors import (
    BaseMismatchError,
    MethodOptionError,
    RopepatchWarning,
    SidecarError,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:(Could not find|fan_in_fan_out|`is_gradient|.* is frozen while)"
)
BOTH = {"part": "both"}
CELLS = [
    Cell("llama", "alibi", {"slopes": "trainable"}),
    Cell("llama", "kerple_log"),
    Cell("llama", "kerple_power"),
    Cell("llama", "t5_bias"),
    Cell("llama", "scaled_sinusoidal"),
    Cell("llama", "learned"),
    Cell("bloom", "t5_bias"),
    Cell("t5", "kerple_log", BOTH),
    Cell("umt5", "learned", BOTH),
    Cell("gpt2", "kerple_log"),
    Cell("gpt2", "scaled_sinusoidal"),
    Cell("gpt_neo", "t5_bias"),
]
EVERY_CELL = pytest.mark.parametrize("cell", CELLS, ids=str)
SAVED = pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])


def adapted(cell, trained=True, model=None):
    """LoRA that changes the logits, and the encoding's parameters trained beside it, or frozen."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=2,
        target_modules="all-linear",
        init_lora_weights=False,
        modules_to_save=[cell.method] if trained else None,
    )
    return get_peft_model(model or replaced(cell), config)


def step(model):
    """One of SGD, on every logit."""
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inner = model.get_base_model()
    more = {"decoder_input_ids": IDS} if inner.config.is_encoder_decoder else {}
    inner(input_ids=IDS, use_cache=False, **more).logits.square().mean().backward()
    torch.optim.SGD(trained.values(), lr=0.5).step()
    return trained


def answers_of(model):
    return answers(model.eval().get_base_model())


@EVERY_CELL
def test_modules_to_save_trains_the_encoding_beside_lora(cell):
    model = adapted(cell)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = step(model)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    own = {name for name in trained if f".{cell.method}." in name}
    assert len(own) == len(placed(replaced(cell), cell.method))
    assert own <= moved
    assert all("lora_" in name for name in moved - own)
    assert verify(model).method == cell.method


@EVERY_CELL
def test_without_modules_to_save_the_encoding_is_frozen(cell):
    trained = step(adapted(cell, trained=False))
    assert all("lora_" in name for name in trained)


LORA = {"r": 2, "target_modules": "all-linear"}


@EVERY_CELL
def test_what_peft_froze_is_told_once_with_what_to_do(cell):
    model = adapted(cell, trained=False)
    with pytest.warns(RopepatchWarning, match="is frozen while other parameters train") as caught:
        step(model)
    ours = [str(each.message) for each in caught if each.category is RopepatchWarning]
    assert len(ours) == len({name.rpartition(".")[0] for name in placed(model, cell.method)})
    assert all(f"modules_to_save=['{cell.method}']" in each for each in ours)
    assert all("patch_model after get_peft_model" in each for each in ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RopepatchWarning)
        step(model)


def lora_after(cell):
    return adapted(cell)


def lora_before(cell):
    return replaced(cell, get_peft_model(fresh(cell.kind), LoraConfig(**LORA)))


def all_frozen(cell):
    return replaced(cell).requires_grad_(False)


def all_trained(cell):
    return replaced(cell)


def in_evaluation(cell):
    return adapted(cell, trained=False).eval()


@each_value(
    cell=[*CELLS, *CELLS],
    build=[lora_after, lora_before, all_frozen, all_trained, in_evaluation],
)
def test_nobody_is_told_of_what_trains_or_of_what_does_not_train_at_all(cell, build):
    model = build(cell).train(build is not in_evaluation)
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    more = {"decoder_input_ids": IDS} if inner.config.is_encoder_decoder else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RopepatchWarning)
        inner(input_ids=IDS, use_cache=False, **more)


@EVERY_CELL
def test_nobody_is_told_where_no_gradient_is_asked_for(cell):
    inner = adapted(cell, trained=False).train().get_base_model()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", RopepatchWarning)
        called(inner)


@pytest.mark.parametrize(("cell", "trained"), crossed(CELLS, [True, False]), ids=str)
def test_an_adapter_brings_back_its_own_values_and_those_of_its_base(cell, trained, tmp_path):
    """A base that is patched anew starts elsewhere: values that were not trained come back, too."""
    model = adapted(cell, trained)
    step(model)
    expected = answers_of(model)
    directory = save_pretrained(model, tmp_path / "adapter")
    loaded = load_pretrained(directory, base_model=fresh(cell.kind))
    assert torch.equal(answers_of(loaded), expected)
    assert verify(loaded).method == cell.method
    with loaded.disable_adapter(), model.disable_adapter():
        assert torch.equal(answers_of(loaded), answers_of(model))


@pytest.mark.parametrize(("cell", "trained"), crossed(CELLS, [True, False], 1), ids=str)
def test_a_merge_keeps_them(cell, trained, tmp_path):
    model = adapted(cell, trained)
    step(model)
    expected = answers_of(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(answers(merged), expected, atol=1e-4, rtol=1e-4)
    assert verify(merged).method == cell.method
    assert placed(merged, cell.method).keys() == placed(replaced(cell), cell.method).keys()
    loaded = load_pretrained(save_pretrained(merged, tmp_path / "merged")).eval()
    assert torch.equal(answers(loaded), answers(merged))


@EVERY_CELL
def test_patching_a_model_that_has_an_adapter_gives_the_same(cell):
    first = adapted(cell, trained=False)
    last = replaced(cell, adapted(cell, trained=False, model=fresh(cell.kind)))
    assert torch.equal(answers_of(last), answers_of(first))
    assert verify(last) == verify(first)


@EVERY_CELL
def test_unpatching_under_an_adapter_leaves_the_adapter_alone(cell):
    alone = adapted(cell, trained=False, model=fresh(cell.kind))
    short = IDS[:, :30]
    expected = answers(alone.eval().get_base_model(), short)
    model = unpatch_model(replaced(cell, adapted(cell, trained=False, model=fresh(cell.kind))))
    assert torch.equal(answers(model.eval().get_base_model(), short), expected)
    assert patch_info(model) is None


@pytest.mark.parametrize("damage", ["missing", "of shape (3,)"])
def test_an_adapter_without_its_bases_values_is_refused_and_the_base_left_as_it_was(
    damage, tmp_path
):
    cell = Cell("llama", "kerple_log")
    directory = save_pretrained(adapted(cell), tmp_path / "adapter")
    file = directory / "ropepatch.safetensors"
    held = load_file(file)
    name = "model.kerple_log.r2"
    if damage == "missing":
        del held[name]
    else:
        held[name] = torch.ones(3)
    save_file(held, file)
    base = fresh("llama")
    before = answers(base, IDS[:, :30])
    with pytest.raises(
        SidecarError, match=rf"model\.kerple_log\.r2.*is {damage[:7]}.*allowed: \(4,\)"
    ):
        load_pretrained(directory, base_model=base)
    assert patch_info(base) is None
    assert torch.equal(answers(base, IDS[:, :30]), before)


def test_an_adapter_whose_file_of_values_is_gone_is_refused(tmp_path):
    directory = save_pretrained(adapted(Cell("llama", "t5_bias")), tmp_path / "adapter")
    (directory / "ropepatch.safetensors").unlink()
    with pytest.raises(SidecarError, match=r"model\.t5_bias\.weight.*is missing"):
        load_pretrained(directory, base_model=fresh("llama"))


def test_an_adapter_for_one_encoding_does_not_go_on_a_base_with_another(tmp_path):
    directory = save_pretrained(adapted(Cell("llama", "t5_bias")), tmp_path / "adapter")
    base = replaced(Cell("llama", "kerple_log"))
    with pytest.raises(BaseMismatchError, match=r"t5_bias.*kerple_log"):
        load_pretrained(directory, base_model=base)
    assert patch_info(base).method == "kerple_log"


@SAVED
def test_an_adapter_does_not_go_on_the_same_encoding_with_other_values(trained, tmp_path):
    cell = Cell("llama", "kerple_log")
    model = adapted(cell, trained)
    expected = answers_of(model)
    directory = save_pretrained(model, tmp_path / "adapter")
    assert torch.equal(answers_of(load_pretrained(directory, base_model=replaced(cell))), expected)
    base = patch_model(fresh("llama"), "kerple_log", 2)  # whose values are where they start
    before = answers(base)
    with pytest.raises(
        BaseMismatchError, match=r"model\.kerple_log\.r1, .* have other values than"
    ):
        load_pretrained(directory, base_model=base)
    assert torch.equal(answers(base), before)


def test_an_adapter_goes_on_the_same_encoding_cast_to_another_dtype(tmp_path):
    cell = Cell("llama", "kerple_log")
    directory = save_pretrained(adapted(cell), tmp_path / "adapter")
    load_pretrained(directory, base_model=replaced(cell).bfloat16())


@pytest.mark.parametrize("cell", CELLS[:6], ids=str)
def test_a_replacement_that_fails_leaves_trained_values_as_they_were(cell):
    model = adapted(cell)
    step(model)
    expected = answers_of(model)
    with pytest.raises(MethodOptionError):
        patch_model(model, "kerple_log", 2, replace=True, seed=-1)
    assert torch.equal(answers_of(model), expected)


@pytest.mark.parametrize("cell", CELLS[:6], ids=str)
def test_another_patch_for_a_while_leaves_trained_values_as_they_were(cell):
    model = adapted(cell)
    step(model)
    expected = answers_of(model)
    with patched(model, "nope", 2, replace=True):
        assert not torch.equal(answers_of(model), expected)
    assert torch.equal(answers_of(model), expected)
    step(model)
    assert verify(model).method == cell.method


def test_an_adapter_on_a_merged_model_saves_the_values_of_the_merge(tmp_path):
    cell = Cell("llama", "kerple_log")
    first = adapted(cell)
    step(first)
    model = adapted(cell, trained=False, model=first.merge_and_unload())
    loaded = load_pretrained(save_pretrained(model, tmp_path / "second"), base_model=fresh("llama"))
    for name, value in placed(model, cell.method).items():
        assert torch.equal(dict(loaded.named_parameters())[name], value)
