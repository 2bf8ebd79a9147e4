"""Recipes whose lengths, factors and checkpoints contradict each other."""

import logging

import pytest
from tiny_runs import LENGTH, extension_tree, pretraining, pretraining_tree
from transformers import AutoModelForCausalLM

from ropepatch import patch_model
from ropepatch.errors import AlreadyScaledError, ConfigError, RopepatchWarning
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train

SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": LENGTH,
}


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A checkpoint whose config scales its positions four times already, as Llama 3.1's does."""
    tree = pretraining_tree(tmp_path_factory.mktemp("scaled"), max_steps=1)
    tree["model"]["config"] |= {"rope_parameters": SCALED, "max_position_embeddings": 4 * LENGTH}
    return train(parse_recipe(tree)).directory


def extension_of(root, base, **patch):
    tree = extension_tree(root, base)
    tree["patch"] |= patch
    tree["training"]["max_steps"] = 1
    tree["output_dir"] = str(root / "extended")
    return parse_recipe(tree)


def test_a_scaled_checkpoint_is_not_scaled_twice_unasked(tmp_path, scaled):
    with pytest.raises(AlreadyScaledError, match="replace"):
        train(extension_of(tmp_path, scaled))


def test_a_factor_below_the_scale_of_the_checkpoint_is_refused(tmp_path, scaled):
    with pytest.raises(ConfigError, match=r"over 32 tokens gives 64, fewer than the 128 that"):
        train(extension_of(tmp_path, scaled, factor=2, replace=True))


def test_scaling_that_replaces_another_counts_from_the_length_it_is_told(tmp_path, scaled):
    recipe = extension_of(
        tmp_path, scaled, factor=2, replace=True, original_max_position_embeddings=4 * LENGTH
    )
    assert train(recipe).steps == 1


def test_training_past_the_trained_length_without_a_patch_is_told(tmp_path):
    base = train(pretraining(tmp_path, max_steps=1)).directory
    tree = extension_tree(tmp_path, base) | {"patch": None, "output_dir": str(tmp_path / "other")}
    tree["training"]["max_steps"] = 1
    with pytest.warns(RopepatchWarning, match="trains 128 tokens on a checkpoint for 32"):
        train(parse_recipe(tree))


def test_no_warning_of_a_length_before_the_patch_reaches_the_user(caplog, scaled):
    logger = logging.getLogger("transformers.modeling_rope_utils")
    logger.addHandler(caplog.handler)
    try:
        patch_model(AutoModelForCausalLM.from_pretrained(scaled), "yarn", 8, replace=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"length": 5 * LENGTH}, r"trains 160 tokens, but patch\.factor 4 over 32 is for 128"),
        # Not that the text is too short for it.
        ({"length": 1_000_001}, r"at most 128 tokens, or a factor of 31251"),
        ({"length": LENGTH, "positions": {"target": 256}}, "trains 256 tokens"),
    ],
)
def test_training_beyond_the_target_is_refused(tmp_path, data, message):
    base = train(pretraining(tmp_path, max_steps=1)).directory
    tree = extension_tree(tmp_path, base)
    tree["data"] |= data
    tree["output_dir"] = str(tmp_path / "extended")
    with pytest.raises(ConfigError, match=message):
        train(parse_recipe(tree))
