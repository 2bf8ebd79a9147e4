"""Runs that were stopped go on to the same end; finished ones are left alone."""

from dataclasses import replace

import pytest
from run_files import StopAt, losses, same_weights
from tiny_runs import extension, pretraining

from ropepatch.errors import CheckpointError, ConfigError, RopepatchWarning
from ropepatch.training.runner import TrainingInterrupted, train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished pretraining."""
    return train(pretraining(tmp_path_factory.mktemp("base"))).directory


@pytest.mark.parametrize("step", [1, 4, 5])
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, base, step):
    recipe = pretraining(tmp_path)
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[StopAt(step, KeyboardInterrupt())])
    result = train(recipe)
    assert same_weights(result.directory, base)
    # Every step is logged once.
    assert losses(recipe) == losses(pretraining(base.parents[1]))


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_an_interrupted_adapter_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path, base, train_embeddings
):
    recipe = extension(tmp_path, base, train_embeddings=train_embeddings, train_norms=True)
    other = replace(recipe, output_dir=str(tmp_path / "other"))
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[StopAt(5, KeyboardInterrupt())])
    assert same_weights(train(recipe).directory, train(other).directory)


def test_a_damaged_newest_checkpoint_is_not_resumed_from(tmp_path, base):
    recipe = pretraining(tmp_path)
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[StopAt(5, KeyboardInterrupt())])
    (tmp_path / "run" / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    with pytest.warns(RopepatchWarning, match="goes on from checkpoint-2"):
        assert same_weights(train(recipe).directory, base)


def test_an_interruption_says_what_is_kept(tmp_path):
    recipe = pretraining(tmp_path)
    with pytest.raises(TrainingInterrupted) as caught:
        train(recipe, callbacks=[StopAt(3, KeyboardInterrupt())])
    assert "checkpoint-2" in str(caught.value)
    assert "run the same recipe again" in str(caught.value)


def test_metrics_that_cannot_be_written_stop_the_run_with_a_reason(tmp_path):
    recipe = pretraining(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="could not write"):
        train(recipe)


def test_a_finished_run_is_not_done_again(base):
    before = base.stat().st_mtime_ns
    assert train(pretraining(base.parents[1])).loss is None
    assert base.stat().st_mtime_ns == before


def test_a_finished_run_refuses_another_recipe(base):
    with pytest.raises(ConfigError, match="belongs to a run of another recipe"):
        train(pretraining(base.parents[1], max_steps=7))
