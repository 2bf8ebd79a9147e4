"""Runs that need more memory than there is: what they say, and how they go on."""

import re

import pytest
import torch
from tiny_runs import extension, extension_tree, pretraining, pretraining_tree
from transformers import TrainerCallback

from ropepatch.errors import ConfigError, OutOfMemoryError
from ropepatch.training import runner
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train

ALLOCATION = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 8000000000 bytes. Error code 12 (Cannot allocate memory)"
)


class Fails(TrainerCallback):
    """Raises within a step, as an allocation would."""

    def __init__(self, error, step=3):
        self.error = error
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise self.error


def refusal(recipe, error=None):
    with pytest.raises(OutOfMemoryError) as caught:
        train(recipe, callbacks=[Fails(error or torch.OutOfMemoryError("CUDA out of memory."))])
    return str(caught.value)


def in_bytes(text):
    number, unit = text.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(ALLOCATION),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_it_says_what_a_step_takes_what_lowers_it_and_what_is_kept(tmp_path, error):
    said = refusal(pretraining(tmp_path, per_device_batch_size=8), error)
    before, *lowered = map(in_bytes, re.findall(r"(?:about |\()([\d.]+ .?B)", said))
    parts = re.findall(r"(?:weights|gradients|optimizer|activations|logits) ([\d.]+ .?B)", said)
    assert sum(map(in_bytes, parts)) == pytest.approx(before, rel=0.01)
    assert len(lowered) == 3
    assert lowered == sorted(lowered)
    assert lowered[-1] < before
    assert "training.per_device_batch_size=1 training.gradient_accumulation=16" in said
    assert "checkpoint-2" in said


def test_shorter_sequences_with_skipped_positions_are_among_what_lowers_it(tmp_path):
    (tmp_path / "base").mkdir()
    base = train(pretraining(tmp_path / "base", max_steps=1)).directory
    said = refusal(extension(tmp_path, base))
    assert "data.length=64 data.positions.target=128" in said


def test_where_all_weights_train_an_adapter_is_among_what_lowers_it(tmp_path):
    (tmp_path / "base").mkdir()
    base = train(pretraining(tmp_path / "base", max_steps=1)).directory
    tree = extension_tree(tmp_path, base) | {"lora": {"preset": "full"}}
    tree["training"] |= {"per_device_batch_size": 1, "chunked_loss": True}
    tree["data"]["length"] = 8  # so few tokens that weights are what counts
    assert "lora.preset=lora (" in refusal(parse_recipe(tree))


def test_other_errors_pass(tmp_path):
    error = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit") as caught:
        train(pretraining(tmp_path), callbacks=[Fails(error)])
    assert caught.value is error


def test_memory_that_ends_before_the_first_step_is_explained_too(tmp_path, monkeypatch):
    def load(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(runner, "load_model", load)
    with pytest.raises(OutOfMemoryError, match=r"before the first step.*--dry-run"):
        train(pretraining(tmp_path))


def test_a_run_goes_on_with_less_memory_and_ends_as_it_would_have(tmp_path):
    (tmp_path / "whole").mkdir()
    undisturbed = train(pretraining(tmp_path / "whole"))
    refusal(pretraining(tmp_path))
    changed = pretraining_tree(tmp_path, gradient_checkpointing=True, chunked_loss=True)
    assert train(parse_recipe(changed)).loss == pytest.approx(undisturbed.loss, abs=1e-4)


def test_what_would_make_it_another_run_is_still_refused(tmp_path):
    refusal(pretraining(tmp_path))
    with pytest.raises(ConfigError, match=r"another recipe \(training\.precision: fp32 → bf16\)"):
        train(pretraining(tmp_path, gradient_checkpointing=True, precision="bf16"))
