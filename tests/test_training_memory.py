"""Estimates of memory: against what runs take, against sums by hand, and long against short ones."""

import sys
from pathlib import Path

import pytest
from tiny_runs import LENGTH, pretraining_tree

from ropepatch.training import memory, runner
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.run_directory import RunDirectory

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks are not installed

from benchmarks.training_memory import CELLS, compare

LLAMA_PARAMETERS = 450 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32  # embeddings are tied


def estimate(tree):
    recipe = parse_recipe(tree)
    trainer = runner.prepare(RunDirectory(recipe), weights=False)
    return memory.estimate_memory(trainer, memory.longest_batch(trainer))


def tree_of(tmp_path, length=LENGTH, config=None, **training):
    tree = pretraining_tree(tmp_path, gradient_accumulation=1, **training)
    # With dropout, attention on a CPU makes the matrix of all tokens.
    tree["model"]["config"] |= {"attention_dropout": 0.0} | (config or {})
    tree["data"]["length"] = length
    return tree


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux says of a process")
def test_an_estimate_is_within_a_quarter_of_what_a_run_takes():
    cell = CELLS["llama, LoRA, gradient_checkpointing"]
    estimated, measured = compare({**cell, "data.length": 2048})
    assert measured > 80, "too little to tell from what the process takes itself"
    assert estimated == pytest.approx(measured, rel=0.25)


def test_weights_and_optimizer_are_those_of_the_parameters(tmp_path):
    found = estimate(tree_of(tmp_path))
    assert found.weights == 4 * LLAMA_PARAMETERS
    # Two moments of four bytes, and a count of steps for each of 20 tensors.
    assert found.optimizer == 8 * LLAMA_PARAMETERS + 4 * 20


def test_gradients_count_where_a_step_accumulates_them(tmp_path):
    tree = tree_of(tmp_path, length=8 * LENGTH)
    assert estimate(tree).gradients == 0
    tree["training"]["gradient_accumulation"] = 2
    assert estimate(tree).gradients == 4 * LLAMA_PARAMETERS


def test_with_few_tokens_most_is_needed_when_all_gradients_are_there(tmp_path):
    assert estimate(tree_of(tmp_path, length=8, per_device_batch_size=1)).gradients > (
        2 * LLAMA_PARAMETERS
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_are_those_of_every_token_until_they_come_in_chunks(tmp_path, batch, monkeypatch):
    monkeypatch.setattr("ropepatch.training.lm_loss._LOGITS", 450 * 16)
    long = {"length": 8 * LENGTH, "per_device_batch_size": batch}
    logits = batch * 8 * LENGTH * 450 * 4  # bytes, in float32
    assert 2 * logits <= estimate(tree_of(tmp_path, **long)).logits <= 4 * logits
    assert estimate(tree_of(tmp_path, chunked_loss=True, **long)).logits <= 4 * 16 * 450 * 4


def test_checkpointing_leaves_less_and_offloading_still_less(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "require_machine", lambda recipe: None)
    layers = {"config": {"num_hidden_layers": 5}, "length": 8 * LENGTH, "chunked_loss": True}
    every, kept, moved = (
        estimate(tree_of(tmp_path, **layers, **options)).activations
        for options in (
            {},
            {"gradient_checkpointing": True},
            {"gradient_checkpointing": True, "offload_activations": True},
        )
    )
    assert kept < every / 2
    # The input of every layer: 2 sequences, 32 channels of 4 bytes.
    assert kept - moved == 5 * 2 * 8 * LENGTH * 32 * 4


@pytest.mark.parametrize("kind", ["llama", "window"])
def test_a_long_step_is_extrapolated_to_what_it_takes(tmp_path, monkeypatch, kind):
    configs = {
        "llama": {},
        "window": {"model_type": "mistral", "sliding_window": 16},  # whose mask is of all tokens
    }
    tree = tree_of(tmp_path, length=1500, config=configs[kind])
    direct = estimate(tree)
    monkeypatch.setattr(memory, "_LONGEST", 1000)
    monkeypatch.setattr(memory, "_LENGTHS", (251, 499))
    assert estimate(tree).peak == pytest.approx(direct.peak, rel=1e-3)


def test_a_long_step_of_a_large_model_is_not_below_what_its_update_takes(tmp_path, monkeypatch):
    tree = tree_of(tmp_path, length=64, per_device_batch_size=1)
    tree["model"]["tokenizer"] = {"vocab_size": 2000}
    monkeypatch.setattr(memory, "_LONGEST", 32)
    monkeypatch.setattr(memory, "_LENGTHS", (3, 5))
    found = estimate(tree)
    assert found.peak >= 16 * (LLAMA_PARAMETERS + 1550 * 32)


def test_a_long_step_within_groups_is_extrapolated_from_whole_groups(tmp_path, monkeypatch):
    tree = tree_of(tmp_path, length=1536, shifted_attention={"group": 128})
    # With dropout, what would be seen between groups is most of what all attention keeps.
    tree["model"]["config"]["attention_dropout"] = 0.1
    direct = estimate(tree)
    monkeypatch.setattr(memory, "_LONGEST", 1000)
    monkeypatch.setattr(memory, "_LENGTHS", (251, 499))
    assert estimate(tree).peak == pytest.approx(direct.peak, rel=1e-2)


@pytest.mark.parametrize("longest", [0, 1, 2])
def test_of_a_curriculum_the_stage_with_the_longest_sequences_counts(tmp_path, longest):
    tree = tree_of(tmp_path, length=4 * LENGTH)
    direct = estimate(tree)
    stages = [{"steps": 2, "length": LENGTH} for _ in range(3)]
    stages[longest] = {"steps": 2}
    assert estimate({**tree, "stages": stages}) == direct
