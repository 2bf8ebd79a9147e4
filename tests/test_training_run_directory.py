"""What a run leaves on disk is whole or absent."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ropepatch.errors import CheckpointError, ConfigError, RopepatchWarning
from ropepatch.training.checkpoints import seal
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    recipe = parse_recipe(
        {
            "model": {"path": "somewhere"},
            "training": {"max_steps": 3, "learning_rate": 0.1},
            "output_dir": str(tmp_path / "run"),
        }
    )
    run = RunDirectory(recipe)
    run.claim()
    return run


def write_checkpoint(run, step):
    checkpoint = run.path / f"checkpoint-{step}"
    checkpoint.mkdir()
    save_file({"weight": torch.zeros(100)}, checkpoint / "model.safetensors")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.zeros(100)}, checkpoint / name)
    seal(checkpoint)
    return checkpoint


def break_off(run, name, error):
    """Fail with half of a directory written."""
    with run.publish(name) as staging:
        (staging / name).mkdir()
        raise error


def truncate(path):
    os.truncate(path, path.stat().st_size - 10)


def test_the_newest_checkpoint_is_by_number_not_by_name(run):
    write_checkpoint(run, 90)
    newest = write_checkpoint(run, 100)
    assert run.last_good_checkpoint() == newest


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", [truncate, os.remove])
def test_a_damaged_checkpoint_is_passed_over(run, name, damage):
    good = write_checkpoint(run, 1)
    damage(write_checkpoint(run, 2) / name)
    with pytest.warns(RopepatchWarning, match="checkpoint-2 is not whole"):
        assert run.last_good_checkpoint() == good


def test_no_checkpoint_is_none(run):
    assert run.last_good_checkpoint() is None


def test_a_directory_appears_only_when_its_block_has_ended(run):
    with run.publish("final") as staging:
        (staging / "final").mkdir()
        (staging / "final" / "a").touch()
        assert not run.result.exists()
    assert [path.name for path in run.result.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError),
        (RuntimeError("PytorchStreamWriter failed"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_save_leaves_what_was_there(run, error, raised):
    write_checkpoint(run, 1)
    before = sorted(run.path.rglob("*"))
    with pytest.raises(raised):
        break_off(run, "checkpoint-1", error)
    assert sorted(run.path.rglob("*")) == before


def test_a_failed_save_names_the_reason_and_the_checkpoint_that_is_kept(run):
    kept = write_checkpoint(run, 1)
    with pytest.raises(CheckpointError) as caught, run.publish("final"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "No space left on device" in str(caught.value)
    assert f"the last good checkpoint is kept: {kept}" in str(caught.value)


def test_a_disk_without_space_is_named_whatever_the_writer_says(run, monkeypatch):
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="the disk is full"), run.publish("final"):
        raise RuntimeError("unexpected pos 272256 vs 272148")


def test_leftovers_of_a_killed_run_are_removed(run):
    (run.path / ".staging-abc").mkdir()
    run.claim()
    assert [path.name for path in run.path.iterdir()] == ["recipe.yaml"]


def test_another_recipe_is_refused_once_something_was_saved(run):
    write_checkpoint(run, 1)
    other = replace(run.recipe, training=replace(run.recipe.training, max_steps=4))
    with pytest.raises(ConfigError, match=r"training\.max_steps: 3 → 4"):
        RunDirectory(other).claim()


def test_a_recipe_may_be_corrected_before_anything_was_saved(run):
    other = replace(run.recipe, training=replace(run.recipe.training, max_steps=4))
    RunDirectory(other).claim()
    assert "max_steps: 4" in (run.path / "recipe.yaml").read_text()


def test_a_moved_directory_is_still_the_same_run(run):
    write_checkpoint(run, 1)
    moved = run.path.rename(run.path.with_name("moved"))
    RunDirectory(replace(run.recipe, output_dir=str(moved))).claim()


def test_a_directory_that_cannot_be_written_is_refused(run):
    below_a_file = run.path / "recipe.yaml" / "run"
    with pytest.raises(CheckpointError, match="cannot write to output_dir"):
        RunDirectory(replace(run.recipe, output_dir=str(below_a_file))).claim()


def test_a_run_of_a_version_that_knew_fewer_options_goes_on(run):
    write_checkpoint(run, 1)
    stored = run.path / "recipe.yaml"
    tree = yaml.safe_load(stored.read_text())
    del tree["training"]["keep_checkpoints"]
    stored.write_text(yaml.safe_dump(tree))
    run.claim()
