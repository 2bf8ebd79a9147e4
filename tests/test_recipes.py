"""The recipes that ship: every one can be read, and says how to run it; the tiny ones run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ropepatch.corpus import load_documents
from ropepatch.training.models import load_model, load_tokenizer
from ropepatch.training.recipe import load_recipe
from ropepatch.training.runner import train

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SHORT = [path for path in RECIPES if path.parent.name == "train-short-test-long"]
TINY = [path for path in RECIPES if path.stem.startswith("tiny-")]
NAMED = {
    "tiny-llama-yarn-4x",
    "tiny-llama-yarn-8x",
    "tiny-llama-linear-4x",
    "tiny-llama-ntk-4x",
    "tiny-llama-pose-4x",
    "tiny-llama-longlora-8x",
    "tiny-neox-yarn-4x",
    "tiny-bloom-linear-4x",
    "tiny-t5-log-4x",
    "llama-3.1-8b-yarn-512k",
    "qwen3-4b-yarn-4x",
    "mistral-7b-yarn-4x",
    "pythia-1.4b-yarn-8x",
    "bloom-1b7-8k",
    "flan-t5-large-4k",
    "fsdp2-8gpu",
    "llama-2-7b-qlora-16k",
}


def name(path):
    return str(path.relative_to(ROOT).with_suffix(""))


def opening(path):
    """The comments that a recipe begins with."""
    text = path.read_text(encoding="utf-8")
    return [
        line.removeprefix("#").strip()
        for line in re.split(r"\n(?=model:|extends:)", text)[0].splitlines()
    ]


def test_all_recipes_are_there():
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == NAMED


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_can_be_read_and_trains_into_a_directory_of_its_name(path):
    assert Path(load_recipe(path).output_dir).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_opens_with_its_command_and_what_to_expect(path):
    command, *rest = opening(path)
    assert f"ropepatch train recipes/{path.relative_to(ROOT / 'recipes')}" in command
    said = " ".join(rest)
    assert ("Not run here" in said) == (path not in TINY + SHORT)
    assert "Expected" in said or path.parent.name == "pretrain" or path in SHORT


def test_models_that_train_short_differ_in_their_positions_only():
    recipes = [load_recipe(path) for path in SHORT]
    rest = {repr(replace(recipe, patch=None, output_dir="")) for recipe in recipes}
    multiplied = {recipe for recipe in rest if "embedding_multiplier" in recipe}
    assert len(multiplied) == len(rest - multiplied) == 1
    assert len({repr(recipe.patch) for recipe in recipes}) == len(recipes) == 13


def shortened(path, tmp_path):
    """A recipe with two small steps, still of more tokens than a base was trained on, and of two groups."""
    recipe = load_recipe(path)
    longest = 1024 if recipe.training.shifted_attention else 512
    changes = (
        f"data.length={min(recipe.data.length, longest)}",
        f"output_dir={tmp_path / 'run'}",
        "data.source=ropepatch",  # read faster than the standard library
        "training.max_steps=2",
        "training.warmup_steps=0",
        "training.decay_steps=0",
        "training.schedule=constant",
        "training.per_device_batch_size=1",
        "training.gradient_accumulation=1",
        "training.torch_compile=false",
        "training.logging_steps=1",
        "evaluation=null",
    )
    return load_recipe(path, changes)


@pytest.mark.parametrize("path", [*TINY, SHORT[0]], ids=name)
def test_a_tiny_recipe_runs(tmp_path, monkeypatch, path):
    monkeypatch.chdir(ROOT)
    result = train(shortened(path, tmp_path))
    assert result.steps == 2
    assert result.loss < 9.0  # ln 2048 = 7.6 is guessing


@pytest.mark.parametrize("path", SHORT[1:], ids=name)
def test_models_that_train_short_learn_with_their_positions(tmp_path, path):
    """They differ in positions only, so one run of them is enough."""
    recipe = shortened(path, tmp_path)
    tokenizer = load_tokenizer(recipe, load_documents("ropepatch", "train")[:20])
    model = load_model(recipe, tokenizer)
    ids = torch.arange(2 * recipe.data.length).view(2, -1) % len(tokenizer)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
