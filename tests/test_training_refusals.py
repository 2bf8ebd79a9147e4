"""Runs that cannot be: text, models and checkpoints that are refused before anything is trained."""

from dataclasses import replace

import pytest
from tiny_runs import CONFIG, T5_CONFIG, extension, pretraining, pretraining_tree
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropepatch.errors import CheckpointError, ConfigError, DataError, RopepatchError
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished pretraining."""
    return train(pretraining(tmp_path_factory.mktemp("base"), max_steps=1)).directory


def recipe_with(tmp_path, changes):
    tree = pretraining_tree(tmp_path)
    for dotted, value in changes.items():
        section, key = dotted.split(".")
        tree[section][key] = value
    return parse_recipe(tree)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is empty"), (b"a\0b", "is binary"), (b"far too short", "tokens in all")],
)
def test_text_that_cannot_be_used_is_refused(tmp_path, content, expected):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        train(recipe_with(tmp_path, {"data.source": str(path)}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.config": {**CONFIG, "hiden_size": 3}}, "did you mean hidden_size?"),
        ({"model.config": {**CONFIG, "hidden_size": 33}}, "not a multiple"),
        ({"model.config": {**CONFIG, "hidden_size": "wide"}}, "expected int"),
        ({"model.config": {"model_type": "lama"}}, "no lama model"),
        ({"model.config": {**T5_CONFIG, "d_mdel": 3}}, "did you mean d_model?"),
        ({"model.config": {**CONFIG, "vocab_size": 100}}, "tokenizer does not fit the model"),
        ({"model.tokenizer": {"vocab_size": 100}}, "vocab_size=100 has no room"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(tmp_path, changes, expected):
    with pytest.raises(RopepatchError) as caught:
        train(recipe_with(tmp_path, changes))
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_missing_checkpoint_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        train(extension(tmp_path, tmp_path / "a" / "b" / "c"))


def test_an_adapter_is_refused_as_a_base(tmp_path, base):
    adapter = train(extension(tmp_path, base)).directory
    recipe = replace(extension(tmp_path, adapter), output_dir=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="is an adapter"):
        train(recipe)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(200)
    model.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "small")
    with pytest.raises(DataError, match="450 tokens, but the model has embeddings for 200"):
        train(extension(tmp_path, tmp_path / "small"))
