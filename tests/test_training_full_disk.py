"""A disk that fills up, wherever a run writes: a clear message, and nothing lost."""

import errno

import pytest
import torch
from run_files import same_weights
from tiny_runs import pretraining
from transformers import PreTrainedModel, TrainerCallback

from ropepatch.errors import CheckpointError
from ropepatch.training.runner import train

KEPT = r"No space left on device.*the last good checkpoint is kept: .*checkpoint-[24]; .*again to go on"


class FillUp(TrainerCallback):
    """From step 3 on, what is written to `path` does not fit: /dev/full is Linux's own full disk."""

    def __init__(self, path):
        self.path = path

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.path.unlink(missing_ok=True)
            self.path.symlink_to("/dev/full")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(pretraining(tmp_path_factory.mktemp("undisturbed"))).directory


@pytest.mark.parametrize("name", ["metrics.jsonl", ".loss.png.new"])
def test_a_file_that_does_not_fit_stops_the_run_and_keeps_its_checkpoint(
    tmp_path, undisturbed, name
):
    recipe = pretraining(tmp_path)
    path = tmp_path / "run" / name
    with pytest.raises(CheckpointError, match=KEPT):
        train(recipe, callbacks=[FillUp(path)])
    path.unlink(missing_ok=True)
    assert same_weights(train(recipe).directory, undisturbed)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path, undisturbed, monkeypatch):
    recipe = pretraining(tmp_path)
    save = torch.save

    def full_at_step_4(content, path, *rest, **options):
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_at_step_4)
        with pytest.raises(CheckpointError, match=r"No space left.*is kept: .*checkpoint-2"):
            train(recipe)
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    assert same_weights(train(recipe).directory, undisturbed)


@pytest.mark.parametrize("name", [".environment.json.new", "ropepatch.json", ".recipe.yaml.new"])
def test_a_disk_that_is_full_at_the_start_is_named_before_anything_is_trained(tmp_path, name):
    recipe = pretraining(tmp_path)
    path = tmp_path / "run" / name
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(recipe)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_result_that_does_not_fit_is_written_again_without_training(
    tmp_path, undisturbed, monkeypatch
):
    recipe = pretraining(tmp_path)
    save = PreTrainedModel.save_pretrained

    def full(self, directory, *rest, **options):
        if "final" in str(directory):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, directory, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(CheckpointError, match=r"No space left.*kept: .*checkpoint-6"):
            train(recipe)
    assert not (tmp_path / "run" / "final").exists()
    steps = []
    result = train(recipe, progress=lambda progress: steps.append(progress.step))
    assert steps == []
    assert same_weights(result.directory, undisturbed)
