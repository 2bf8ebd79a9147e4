"""Runs that need more memory than there is: what they say, and how they go on."""

import re
import shutil

import pytest
import torch
from tiny_runs import extension, extension_tree, pretraining, pretraining_tree
from transformers import TrainerCallback

from ropepatch.errors import ConfigError, OutOfMemoryError
from ropepatch.training import runner
from ropepatch.training.out_of_memory import memory_explained
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


def refusal(recipe, step=3):
    failing = Fails(torch.OutOfMemoryError("CUDA out of memory."), step)
    with pytest.raises(OutOfMemoryError) as caught:
        train(recipe, callbacks=[failing])
    return str(caught.value)


def in_bytes(text):
    number, unit = text.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What a run said of its third step, and where it lies."""
    root = tmp_path_factory.mktemp("refused")
    return root, refusal(pretraining(root, per_device_batch_size=8))


@pytest.fixture
def broken_off(refused, tmp_path):
    """A copy of that run, to go on with, as a recipe."""
    root, _ = refused
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return lambda **training: parse_recipe(
        {
            **pretraining_tree(root, per_device_batch_size=8, **training),
            "output_dir": str(tmp_path / "run"),
        }
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of one layer, of which an estimate takes half the time."""
    tree = pretraining_tree(tmp_path_factory.mktemp("base"), max_steps=1)
    tree["model"]["config"]["num_hidden_layers"] = 1
    return train(parse_recipe(tree)).directory


def test_it_says_what_a_step_takes_what_lowers_it_and_what_is_kept(refused):
    _, said = refused
    before, *lowered = map(in_bytes, re.findall(r"(?:about |\()([\d.]+ .?B)", said))
    parts = re.findall(r"(?:weights|gradients|optimizer|activations|logits) ([\d.]+ .?B)", said)
    assert sum(map(in_bytes, parts)) == pytest.approx(before, rel=0.01)
    assert len(lowered) == 3
    assert lowered == sorted(lowered)
    assert lowered[-1] < before
    assert "training.per_device_batch_size=1 training.gradient_accumulation=16" in said
    assert "checkpoint-2" in said


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(ALLOCATION),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_every_way_to_run_out_of_memory_is_explained(error):
    refused = pytest.raises(OutOfMemoryError, match="what to do")
    with refused as caught, memory_explained(lambda: "what to do"):
        raise error
    assert caught.value.__cause__ is error


def test_shorter_sequences_with_skipped_positions_are_among_what_lowers_it(tmp_path, base):
    said = refusal(extension(tmp_path, base), step=0)
    assert "data.length=64 data.positions.target=128" in said


def test_where_all_weights_train_an_adapter_is_among_what_lowers_it(tmp_path, base):
    tree = extension_tree(tmp_path, base) | {"lora": {"preset": "full"}}
    tree["training"] |= {"per_device_batch_size": 1, "chunked_loss": True}
    tree["data"]["length"] = 8  # so few tokens that weights are what counts
    assert "lora.preset=lora (" in refusal(parse_recipe(tree), step=0)


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


def test_a_run_goes_on_with_less_memory_and_ends_as_it_would_have(tmp_path, broken_off):
    (tmp_path / "whole").mkdir()
    undisturbed = train(pretraining(tmp_path / "whole", per_device_batch_size=8))
    changed = broken_off(gradient_checkpointing=True, chunked_loss=True)
    steps = []
    loss = train(changed, progress=lambda told: steps.append(told.step)).loss
    assert steps[0] == 3
    assert loss == pytest.approx(undisturbed.loss, abs=1e-4)


def test_what_would_make_it_another_run_is_still_refused(broken_off):
    with pytest.raises(ConfigError, match=r"another recipe \(training\.precision: fp32 → bf16\)"):
        train(broken_off(gradient_checkpointing=True, precision="bf16"))
