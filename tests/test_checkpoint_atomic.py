"""A directory is replaced whole or not at all."""

import errno
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from tiny_models import fresh_model, logits, token_ids
from tiny_tokenizer import tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropepatch import load_pretrained, patch_model, save_pretrained
from ropepatch.errors import CheckpointError, PatchVerificationError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
IDS = token_ids(1, 40)


def contents(directory):
    """Every file below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def patched_llama(method="yarn"):
    return patch_model(fresh_model("llama"), method, 4)


FAILURES = {
    "disk full": OSError(errno.ENOSPC, "No space left on device"),
    "disk full in safetensors": SafetensorError("I/O error: No space left on device"),
    "interrupted": KeyboardInterrupt(),
    "out of memory": MemoryError(),
}


@pytest.fixture(params=FAILURES)
def failing_save(request, monkeypatch):
    """transformers fails after it has written a part."""

    def save(self, directory, **kwargs):
        self.config.save_pretrained(directory)
        (directory / "model.safetensors").write_bytes(b"half")
        raise FAILURES[request.param]

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    error = FAILURES[request.param]
    return CheckpointError if isinstance(error, OSError | SafetensorError) else type(error)


def test_a_crash_while_saving_leaves_the_old_directory_whole(failing_save, tmp_path):
    target = tmp_path / "saved"
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"old")
    (target / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(failing_save):
        save_pretrained(patched_llama(), target)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["saved"]


def test_a_crash_while_saving_leaves_nothing_where_nothing_was(failing_save, tmp_path):
    with pytest.raises(failing_save):
        save_pretrained(patched_llama(), tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def test_a_crash_while_saving_leaves_model_and_tokenizer_as_they_were(monkeypatch, tmp_path):
    def save(self, directory, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", save)
    model, tokenizer = patched_llama(), tiny_tokenizer()
    before = logits(model, IDS)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_pretrained(model, tmp_path / "saved", tokenizer)
    assert tokenizer.model_max_length == 32
    assert torch.equal(logits(model, IDS), before)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named_in_one_sentence(monkeypatch, tmp_path):
    def save(self, directory, **kwargs):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with pytest.raises(CheckpointError, match="No space left on device; what was there before is"):
        save_pretrained(patched_llama(), tmp_path / "saved")


def test_a_failing_swap_puts_the_old_directory_back(monkeypatch, tmp_path):
    target = save_pretrained(patched_llama("linear"), tmp_path / "saved")
    before = contents(tmp_path)
    rename = type(target).rename

    def failing(self, to):
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", failing)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_pretrained(patched_llama("yarn"), target)
    monkeypatch.undo()
    assert contents(tmp_path) == before


def test_a_patch_that_is_not_live_is_not_saved(tmp_path):
    model = patched_llama()
    model.model.rotary_emb = fresh_model("llama").model.rotary_emb
    with pytest.raises(PatchVerificationError):
        save_pretrained(model, tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def test_other_files_are_kept_and_stale_weights_are_not(tmp_path):
    target = save_pretrained(patched_llama("linear"), tmp_path / "saved")
    (target / "README.md").write_text("mine")
    (target / "runs").mkdir()
    (target / "runs" / "log.txt").write_text("mine, too")
    stale = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
    ]
    for name in stale:
        (target / name).write_bytes(b"old")
    save_pretrained(patched_llama("yarn"), target)
    after = contents(target)
    assert after["README.md"] == b"mine"
    assert after["runs/log.txt"] == b"mine, too"
    assert not set(stale) & set(after)
    assert load_pretrained(target).config.rope_parameters["rope_type"] == "yarn"


def adapter_of(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))


def test_a_full_checkpoint_does_not_take_the_place_of_an_adapter(tmp_path):
    save_pretrained(adapter_of(patched_llama()), tmp_path / "saved")
    before = contents(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"holds an adapter.*save to another directory"):
        save_pretrained(patched_llama(), tmp_path / "saved")
    assert contents(tmp_path / "saved") == before


def test_an_adapter_does_not_take_the_place_of_a_full_checkpoint(tmp_path):
    save_pretrained(patched_llama(), tmp_path / "saved")
    before = contents(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"holds a full model.*save to another directory"):
        save_pretrained(adapter_of(patched_llama()), tmp_path / "saved")
    assert contents(tmp_path / "saved") == before


def test_an_unpatched_model_over_a_patched_one_is_loaded_unpatched(tmp_path):
    save_pretrained(patched_llama(), tmp_path / "saved")
    save_pretrained(fresh_model("llama"), tmp_path / "saved")
    reloaded = type(fresh_model("llama")).from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(logits(reloaded, IDS), logits(fresh_model("llama"), IDS))


def test_a_file_in_the_place_of_the_directory_is_named_and_kept(tmp_path):
    (tmp_path / "saved").write_text("mine")
    with pytest.raises(CheckpointError, match="saved is a file"):
        save_pretrained(patched_llama(), tmp_path / "saved")
    assert (tmp_path / "saved").read_text() == "mine"


def test_a_file_in_the_place_of_the_parent_is_named_and_kept(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(CheckpointError, match="could not save to"):
        save_pretrained(patched_llama(), tmp_path / "runs" / "saved")
    assert (tmp_path / "runs").read_text() == "mine"


def test_missing_parents_are_made(tmp_path):
    target = save_pretrained(patched_llama(), tmp_path / "a" / "b" / "saved")
    assert (target / "config.json").is_file()


def test_a_relative_directory_is_saved_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(patched_llama(), "saved")
    assert (tmp_path / "saved" / "config.json").is_file()


@pytest.mark.parametrize("place", [".", "..", "../here"])
def test_the_working_directory_is_not_replaced(place, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match="is the working directory"):
        save_pretrained(patched_llama(), place)
    assert os.listdir(tmp_path) == ["here"]


def test_a_link_to_a_directory_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "saved").symlink_to(tmp_path / "disk")
    save_pretrained(patched_llama(), tmp_path / "saved")
    assert (tmp_path / "saved").is_symlink()
    assert (tmp_path / "disk" / "config.json").is_file()


def test_a_new_directory_can_be_read_by_whoever_may_read_its_neighbours(tmp_path):
    (tmp_path / "neighbour").mkdir()
    target = save_pretrained(patched_llama(), tmp_path / "saved")
    assert target.stat().st_mode == (tmp_path / "neighbour").stat().st_mode
