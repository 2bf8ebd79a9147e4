"""A run that goes on with other weights, other text or another process is refused; so are odd files."""

import json
import shutil

import pytest
from filelock import FileLock
from run_files import StopAt
from safetensors.torch import load_file, save_file
from tiny_runs import extension, extension_tree, pretraining, write_corpus

from ropepatch.errors import CheckpointError, ConfigError, RopepatchWarning
from ropepatch.training.recipe import load_recipe, parse_recipe
from ropepatch.training.runner import TrainingInterrupted, train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(pretraining(tmp_path_factory.mktemp("base"), max_steps=1)).directory


def interrupted(recipe):
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[StopAt(3, KeyboardInterrupt())])
    return recipe


def test_a_run_does_not_go_on_with_other_weights(tmp_path, base):
    own = tmp_path / "own"
    shutil.copytree(base, own)
    recipe = interrupted(extension(tmp_path, own))
    weights = load_file(own / "model.safetensors")
    changed = {name: weight * 1.5 for name, weight in weights.items()}
    save_file(changed, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="the base weights of this run are not those"):
        train(recipe)
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    assert train(recipe).steps == 6


def test_a_run_does_not_go_on_with_other_text(tmp_path):
    recipe = interrupted(pretraining(tmp_path))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(reversed(corpus.read_text().split())))
    with pytest.raises(ConfigError, match="training sequences"):
        train(recipe)
    write_corpus(corpus)
    assert train(recipe).steps == 6


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    recipe = pretraining(tmp_path)
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(ConfigError, match="another process trains in output_dir"),
    ):
        train(recipe)
    assert train(recipe).steps == 6


def test_a_damaged_result_is_made_again_from_the_last_checkpoint(tmp_path, base):
    tree = extension_tree(tmp_path, base)
    tree["training"]["max_steps"] = 2
    recipe = parse_recipe(tree)
    weights = train(recipe).directory / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(b"")
    with pytest.warns(RopepatchWarning, match=r"adapter_model\.safetensors is damaged.*made again"):
        train(recipe)
    assert weights.read_bytes() == before
    assert (tmp_path / "run" / "damaged-final").exists()


def test_lines_of_metrics_that_cannot_be_read_do_not_stop_a_run(tmp_path):
    recipe = interrupted(pretraining(tmp_path))
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 2, "lo\n')
    train(recipe)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()][:6] == [
        *range(1, 7)
    ]


def test_a_recipe_of_the_run_that_cannot_be_read_is_named(tmp_path):
    recipe = interrupted(pretraining(tmp_path))
    (tmp_path / "run" / "recipe.yaml").write_text("{bad: [")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml cannot be read"):
        train(recipe)


def test_a_key_that_comes_twice_is_refused(tmp_path, base):
    path = tmp_path / "recipe.yaml"
    tree = extension_tree(tmp_path, base)
    assert parse_recipe(tree)
    text = json.dumps(tree)[:-1] + ', "output_dir": "elsewhere"}'  # JSON is YAML
    path.write_text(text)
    with pytest.raises(ConfigError, match="the key output_dir comes twice"):
        load_recipe(path)
