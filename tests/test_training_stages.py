"""Curricula: lengths and patches that change during a run, and runs that go on in the middle."""

import shutil
from itertools import pairwise

import pytest
from run_files import same_weights
from tiny_runs import LENGTH, extension_tree, pretraining, pretraining_tree
from transformers import AutoModelForCausalLM, TrainerCallback

from ropepatch import load_pretrained, patch_info, patch_model
from ropepatch.errors import ConfigError
from ropepatch.training.before_after import evaluation_lengths
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.runner import TrainingInterrupted, prepare, train

STAGES = [
    {"steps": 2, "length": 2 * LENGTH, "factor": 2},
    {"steps": 3, "factor": 3},
    {"steps": 1, "options": {"beta_fast": 16.0}},
]


class Watch(TrainerCallback):
    """Notes what the model is patched with while each step is made."""

    def __init__(self, stop_before=None):
        self.seen = {}
        self.stop_before = stop_before

    def on_step_end(self, args, state, control, model=None, **kwargs):
        info = patch_info(model)
        self.seen[state.global_step] = (info.factor, info.options["beta_fast"])
        if state.global_step == self.stop_before:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(pretraining(tmp_path_factory.mktemp("base"))).directory


def staged(root, base, **changes):
    tree = extension_tree(root, base)
    tree["stages"] = STAGES
    tree["data"]["length"] = 3 * LENGTH
    tree["output_dir"] = str(root / "staged")
    return parse_recipe({**tree, **changes})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, base):
    """A whole curriculum, and what its model was patched with."""
    watch = Watch()
    directory = train(staged(tmp_path_factory.mktemp("staged"), base), callbacks=[watch]).directory
    return directory, watch.seen


def test_every_stage_trains_with_its_own_patch(undisturbed):
    by_hand = {1: (2, 32), 2: (2, 32), 3: (3, 32), 4: (3, 32), 5: (3, 32), 6: (4, 16)}
    assert undisturbed[1] == by_hand


def test_the_result_carries_the_patch_of_the_last_stage(undisturbed):
    info = patch_info(load_pretrained(undisturbed[0]))
    assert (info.factor, info.options["beta_fast"]) == (4, 16)


def test_every_stage_trains_sequences_of_its_own_length(tmp_path, base):
    recipe = staged(tmp_path, base)
    trainer = prepare(RunDirectory(recipe))
    lengths = [batch["input_ids"].shape for batch in trainer.get_train_dataloader()]
    # Two batches of two for every step.
    assert lengths == [(2, 2 * LENGTH)] * 4 + [(2, 3 * LENGTH)] * 8


def test_no_sequence_comes_twice(tmp_path, base):
    recipe = staged(tmp_path, base)
    trainer = prepare(RunDirectory(recipe))
    rows = [tuple(item["input_ids"].tolist()) for item in trainer.train_dataset]
    assert len(set(rows)) == len(rows) == 24
    assert all(one[:32] != other[:32] for one, other in pairwise(rows))


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_curriculum_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path, base, undisturbed, step
):
    recipe = staged(tmp_path, base)
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[Watch(stop_before=step)])
    assert same_weights(train(recipe).directory, undisturbed[0])


def test_a_curriculum_killed_before_its_result_is_saved_ends_with_its_last_patch(
    tmp_path, base, undisturbed
):
    shutil.copytree(undisturbed[0].parent, tmp_path / "staged")
    shutil.rmtree(tmp_path / "staged" / "final")
    assert (tmp_path / "staged" / "checkpoint-6").exists()
    again = train(staged(undisturbed[0].parents[1], base, output_dir=str(tmp_path / "staged")))
    info = patch_info(load_pretrained(again.directory))
    assert (info.factor, info.options["beta_fast"]) == (4, 16)


def test_before_training_the_evaluation_is_planned_for_the_last_patch(tmp_path, base):
    recipe = staged(tmp_path, base, stages=[{"steps": 2}, {"steps": 4, "factor": 8}])
    model = patch_model(AutoModelForCausalLM.from_pretrained(base), "yarn", 4)
    assert evaluation_lengths(recipe, model)[1][-1] == 8 * LENGTH


def test_no_stage_may_read_less_than_the_checkpoint_does(tmp_path, base):
    patch = {"method": "yarn", "factor": 4, "original_max_position_embeddings": LENGTH // 2}
    stages = [{"steps": 2}, {"steps": 4, "factor": 1, "length": 8}]
    tree = {**extension_tree(tmp_path, base), "patch": patch, "stages": stages}
    tree["data"]["length"] = 2 * LENGTH
    with pytest.raises(ConfigError, match="gives 16, fewer than the 32"):
        train(parse_recipe(tree))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"steps": 5}], "add up to 5, but training.max_steps is 6"),
        ([{"steps": 6, "options": {"beta": 1}}], "beta"),
        ([{"steps": 6, "lenght": 64}], r"unknown key stages\.0\.lenght; did you mean length"),
    ],
)
def test_stages_that_cannot_be_are_refused(tmp_path, base, stages, message):
    with pytest.raises(ConfigError, match=message):
        staged(tmp_path, base, stages=stages)


def test_a_stage_longer_than_its_factor_reaches_is_refused(tmp_path, base):
    stages = [{"steps": 3, "length": 3 * LENGTH, "factor": 2}, {"steps": 3}]
    with pytest.raises(
        ConfigError, match=r"trains 96 tokens, but patch\.factor 2 over 32 is for 64"
    ):
        train(staged(tmp_path, base, stages=stages))


def test_stages_that_change_a_patch_need_one(tmp_path):
    tree = pretraining_tree(tmp_path)
    tree["stages"] = [{"steps": 6, "factor": 2}]
    with pytest.raises(ConfigError, match="give patch, too"):
        parse_recipe(tree)
