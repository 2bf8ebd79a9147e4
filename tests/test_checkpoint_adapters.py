"""Adapters carry their patch in a sidecar, and meet only bases that fit."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import fresh_model, logits, tiny_model, token_ids
from transformers import AutoModelForCausalLM

from ropepatch import load_pretrained, patch_info, patch_model, save_pretrained, verify
from ropepatch.errors import BaseMismatchError, CheckpointError, SidecarError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
IDS = token_ids(2, 60)
METHODS = pytest.mark.parametrize("method", ["yarn", "dynamic_ntk"])


def with_lora(model):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config).eval()


def saved_adapter(directory, method="yarn", factor=4, **options):
    """An adapter on a patched llama, its logits, and where it was saved."""
    model = with_lora(patch_model(fresh_model("llama"), method, factor, **options))
    return logits(model, IDS), save_pretrained(model, directory / "adapter")


@METHODS
def test_an_unpatched_base_is_patched(method, tmp_path):
    expected, directory = saved_adapter(tmp_path, method)
    loaded = load_pretrained(directory, base_model=fresh_model("llama")).eval()
    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits(loaded, IDS), expected)
    assert verify(loaded).method == method


def test_saving_names_the_base_by_its_full_path_in_the_file_only(tmp_path, monkeypatch):
    save_pretrained(fresh_model("llama"), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    model = with_lora(patch_model(AutoModelForCausalLM.from_pretrained("base"), "yarn", 4))
    saved = save_pretrained(model, tmp_path / "adapter")
    written = json.loads((saved / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    assert model.peft_config["default"].base_model_name_or_path == "base"


@METHODS
def test_a_base_with_the_same_patch_is_taken_as_it_is(method, tmp_path):
    expected, directory = saved_adapter(tmp_path, method)
    base = patch_model(fresh_model("llama"), method, 4)
    rotary = base.model.rotary_emb
    loaded = load_pretrained(directory, base_model=base).eval()
    assert torch.equal(logits(loaded, IDS), expected)
    assert base.model.rotary_emb is rotary


def test_a_base_that_plain_transformers_loaded_with_the_patch_is_taken_as_it_is(tmp_path):
    expected, directory = saved_adapter(tmp_path)
    save_pretrained(patch_model(fresh_model("llama"), "yarn", 4), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = load_pretrained(directory, base_model=base).eval()
    # Float32 angles, and an adapter whose large weights amplify them.
    torch.testing.assert_close(logits(loaded, IDS), expected, atol=1e-3, rtol=1e-4)


@METHODS
@pytest.mark.parametrize("base_is_patched", [False, True])
def test_the_base_that_the_adapter_names_is_loaded(method, base_is_patched, tmp_path):
    model = fresh_model("llama")
    if base_is_patched:
        save_pretrained(patch_model(model, method, 4), tmp_path / "base")
        model = load_pretrained(tmp_path / "base")
    else:
        model.save_pretrained(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        patch_model(model, method, 4)
    model = with_lora(model)
    directory = save_pretrained(model, tmp_path / "adapter")
    loaded = load_pretrained(directory).eval()
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))
    assert verify(loaded).method == method


DIFFERENT = {
    "other method": ("linear", 4, {}),
    "other factor": ("yarn", 2, {}),
    "other option": ("yarn", 4, {"beta_fast": 16}),
    "other length": ("yarn", 4, {"original_max_position_embeddings": 16}),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_a_base_with_another_patch_is_refused_and_left_as_it_was(difference, tmp_path):
    _, directory = saved_adapter(tmp_path)
    method, factor, options = DIFFERENT[difference]
    base = patch_model(fresh_model("llama"), method, factor, **options)
    before, info = logits(base, IDS), patch_info(base)
    with pytest.raises(BaseMismatchError, match=r"trained on yarn, factor 4.*its base has"):
        load_pretrained(directory, base_model=base)
    assert patch_info(base) == info
    assert torch.equal(logits(base, IDS), before)


def test_a_base_that_scales_by_its_own_config_is_refused(tmp_path):
    _, directory = saved_adapter(tmp_path)
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    base = tiny_model("llama", rope_parameters=scaling)
    with pytest.raises(BaseMismatchError, match="own config scales"):
        load_pretrained(directory, base_model=base)
    assert patch_info(base) is None


def test_a_patched_base_is_refused_by_an_adapter_that_was_trained_without(tmp_path):
    save_pretrained(with_lora(fresh_model("llama")), tmp_path / "adapter")
    base = patch_model(fresh_model("llama"), "yarn", 4)
    with pytest.raises(BaseMismatchError, match=r"trained on no patch.*its base has yarn"):
        load_pretrained(tmp_path / "adapter", base_model=base)


def test_an_adapter_that_was_trained_without_a_patch_loads_without(tmp_path):
    model = with_lora(fresh_model("llama"))
    save_pretrained(model, tmp_path / "adapter")
    loaded = load_pretrained(tmp_path / "adapter", base_model=fresh_model("llama")).eval()
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))
    assert patch_info(loaded) is None


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "truncated": lambda path: path.write_text(path.read_text()[:100]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[]"),
    "another object": lambda path: path.write_text('{"method": "yarn"}'),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "edited": lambda path: path.write_text(path.read_text().replace("4.0", "8.0")),
    "newer": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "version": 2})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_sidecar_is_named_and_the_base_left_as_it_was(damage, tmp_path):
    _, directory = saved_adapter(tmp_path, factor=4.0)
    DAMAGE[damage](directory / "ropepatch.json")
    base = fresh_model("llama")
    with pytest.raises(SidecarError, match=r"ropepatch\.json"):
        load_pretrained(directory, base_model=base)
    assert patch_info(base) is None


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_other_damage_to_an_adapter_is_named_and_the_base_left_as_it_was(name, tmp_path):
    _, directory = saved_adapter(tmp_path)
    (directory / name).write_bytes((directory / name).read_bytes()[:20])
    base = fresh_model("llama")
    before = logits(base, IDS)
    with pytest.raises(CheckpointError, match="adapter"):
        load_pretrained(directory, base_model=base)
    assert patch_info(base) is None
    assert torch.equal(logits(base, IDS), before)


def test_missing_adapter_weights_are_named_and_the_base_left_as_it_was(tmp_path):
    _, directory = saved_adapter(tmp_path)
    (directory / "adapter_model.safetensors").unlink()
    base = fresh_model("llama")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        load_pretrained(directory, base_model=base)
    assert patch_info(base) is None


def test_an_adapter_that_does_not_name_its_base_says_so(tmp_path):
    _, directory = saved_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="pass base_model="):
        load_pretrained(directory)


def test_a_merged_adapter_is_saved_as_a_full_checkpoint(tmp_path):
    merged = with_lora(patch_model(fresh_model("llama"), "yarn", 4)).merge_and_unload()
    save_pretrained(merged, tmp_path / "merged")
    assert torch.equal(
        logits(load_pretrained(tmp_path / "merged").eval(), IDS), logits(merged, IDS)
    )


def test_a_local_base_is_found_from_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    fresh_model("llama").save_pretrained("base")
    base = AutoModelForCausalLM.from_pretrained("base")
    adapter = with_lora(patch_model(base, "yarn", 4))
    save_pretrained(adapter, "adapter")
    monkeypatch.chdir(tmp_path / "work")
    loaded = load_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, IDS), logits(adapter, IDS))


def test_a_base_that_is_gone_is_named(tmp_path):
    model = fresh_model("llama")
    model.config._name_or_path = str(tmp_path / "gone")
    model.name_or_path = str(tmp_path / "gone")
    save_pretrained(with_lora(patch_model(model, "yarn", 4)), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"gone.*cannot be loaded; pass base_model="):
        load_pretrained(tmp_path / "adapter")
