"""Recipes that extend one another, and what a patch that trains does not go with."""

import pytest

from ropepatch.errors import ConfigError
from ropepatch.training.recipe import load_recipe


def put(directory, name, text):
    path = directory / name
    path.write_text(text)
    return path


BASE = "model: {path: x}\ntraining: {max_steps: 3, learning_rate: 0.1}\noutput_dir: a\n"


def test_a_recipe_is_laid_over_the_one_that_it_extends(tmp_path):
    put(tmp_path, "base.yaml", BASE)
    path = put(
        tmp_path, "own.yaml", "extends: base.yaml\ntraining: {max_steps: 5}\noutput_dir: b\n"
    )
    recipe = load_recipe(path, ("training.learning_rate=0.2",))
    assert (recipe.training.max_steps, recipe.training.learning_rate) == (5, 0.2)
    assert (recipe.model.path, recipe.output_dir) == ("x", "b")


def test_a_recipe_that_extends_itself_or_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="name of another recipe"):
        load_recipe(put(tmp_path, "own.yaml", "extends: own.yaml\n"))
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*gone\.yaml"):
        load_recipe(put(tmp_path, "own.yaml", "extends: gone.yaml\n"))
    put(tmp_path, "base.yaml", "extends: own.yaml\n")
    with pytest.raises(ConfigError, match="extend one another"):
        load_recipe(put(tmp_path, "own.yaml", "extends: base.yaml\n"))


@pytest.mark.parametrize(
    "changes",
    ["stages: [{steps: 3, factor: 8}]", "evaluation: {factors: [8]}"],
)
def test_what_a_patch_trains_is_not_started_anew_by_another_factor(tmp_path, changes):
    text = f"{BASE}patch: {{method: kerple_log, factor: 4}}\n{changes}\n"
    with pytest.raises(ConfigError, match="would start anew"):
        load_recipe(put(tmp_path, "own.yaml", text))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ("patch: {method: yarn, fit: profile}", "adds no score bias"),
        ("patch: {method: alibi, fit: profile}", "has no parameters"),
        ("patch: {method: t5_bias, fit: curve}", "patch.fit"),
        (
            "patch: {method: t5_bias, fit: profile}\nmodel: {config: {}}",
            "patch.fit needs model.path",
        ),
    ],
)
def test_a_fit_to_nothing_is_refused(tmp_path, sections, expected):
    base = BASE.replace("model: {path: x}\n", "") if "model" in sections else BASE
    with pytest.raises(ConfigError, match=expected):
        load_recipe(put(tmp_path, "own.yaml", f"{base}{sections}\n"))
