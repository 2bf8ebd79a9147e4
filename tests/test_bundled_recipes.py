"""`ropepatch recipes`: what comes with ropepatch is listed, and a copy runs from anywhere."""

from dataclasses import replace
from pathlib import Path

import pytest

from ropepatch.bundled_recipes import bundled_checkpoints, bundled_recipes, summary
from ropepatch.cli import USER_ERROR, main
from ropepatch.training.recipe import load_recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_recipe_and_checkpoint_is_listed_with_a_sentence(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert len(bundled_recipes()) == len(list(RECIPES.rglob("*.yaml")))
    for name, path in {**bundled_recipes(), **bundled_checkpoints()}.items():
        assert f"\n{name} " in listed
        assert summary(path).endswith(".")


def test_a_summary_is_the_first_sentence_below_the_command():
    expected = "The bundled checkpoint from 256 to 1024 tokens by a larger base (NTK-aware)."
    assert summary(RECIPES / "tiny-llama-ntk-4x.yaml") == expected


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_copy_is_the_recipe_with_paths_that_hold_anywhere(name, monkeypatch, capsys):
    assert main(["recipes", "copy", name, "my copies"]) == 0
    copy = Path("my copies", f"{Path(name).name}.yaml")
    original = load_recipe(RECIPES / f"{name}.yaml")
    path = original.model.path
    if path is not None and path.startswith("recipes/"):
        path = str(RECIPES.parent / path)
    assert load_recipe(copy) == replace(original, model=replace(original.model, path=path))
    command = copy.read_text().partition("\n")[0].removeprefix("# ")
    assert command.endswith(f"ropepatch train '{copy}'")
    assert f"run it:  {command}\n" in capsys.readouterr().out


def test_a_copied_checkpoint_is_the_bundled_one():
    assert main(["recipes", "copy", "checkpoints/tiny-llama"]) == 0
    for original in (RECIPES / "checkpoints" / "tiny-llama").iterdir():
        assert Path("tiny-llama", original.name).read_bytes() == original.read_bytes()


def test_a_copy_overwrites_nothing(capsys):
    Path("tiny-llama-yarn-4x.yaml").write_text("mine")
    assert main(["recipes", "copy", "tiny-llama-yarn-4x"]) == USER_ERROR
    assert "tiny-llama-yarn-4x.yaml exists already" in capsys.readouterr().err
    assert Path("tiny-llama-yarn-4x.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["recipes", "copy", "tiny-lama-yarn-4x"], "did you mean tiny-llama-yarn-4x?"),
        (
            ["recipes", "copy", "tiny-llama"],
            "did you mean pretrain/tiny-llama or checkpoints/tiny-llama?",
        ),
        (["recipes", "copy", "nonsense"], "run `ropepatch recipes` to list them"),
        (["train", "tiny-lama.yaml"], "did you mean tiny-llama.yaml?"),
        (["train", "nonsense.yaml"], "`ropepatch recipes` lists those"),
        (["train", "recipes/fsdp2-8gpu.yaml"], "run `ropepatch recipes copy fsdp2-8gpu`"),
    ],
)
def test_a_mistyped_name_says_what_to_do(arguments, hint, capsys):
    Path("tiny-llama.yaml").touch()
    assert main(arguments) == USER_ERROR
    assert hint in capsys.readouterr().err
