"""Recipes: YAML files read into typed sections, with every mistake reported at once."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ropepatch.errors import ConfigError
from ropepatch.training.mistakes import explain, list_mistakes
from ropepatch.training.sections import (
    STRICT,
    DataRecipe,
    LoraRecipe,
    ModelRecipe,
    PatchRecipe,
    TrainingRecipe,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One training run: a pretraining from a config, or the extension of a checkpoint."""

    model: ModelRecipe
    training: TrainingRecipe
    output_dir: str
    data: DataRecipe = dataclasses.field(default_factory=DataRecipe)
    patch: PatchRecipe | None = None
    lora: LoraRecipe | None = None

    def __post_init__(self) -> None:
        if self.lora is not None and self.model.path is None:
            raise ValueError("lora needs model.path: an adapter of random weights is of no use")
        if self.lora is not None and self.training.embedding_learning_rate is not None:
            raise ValueError("training.embedding_learning_rate is for whole models, not for lora")
        if self.lora is None and self.model.quantization is not None:
            raise ValueError("model.quantization needs lora: weights of 4 bits cannot be trained")


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe in a YAML file, with `section.key=value` overrides applied."""
    tree = _read_yaml(path)
    mistakes = [mistake for text in overrides if (mistake := _override(tree, text))]
    if mistakes:
        raise ConfigError(list_mistakes(mistakes, "the overrides"))
    return parse_recipe(tree, name=str(path))


def parse_recipe(tree: dict[str, Any], *, name: str = "recipe") -> Recipe:
    """A recipe from nested mappings; ConfigError lists all mistakes."""
    try:
        return TypeAdapter(Recipe).validate_python(tree)
    except ValidationError as error:
        mistakes = [explain(detail, Recipe) for detail in error.errors()]
        raise ConfigError(list_mistakes(mistakes, name)) from None


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """Plain nested mappings with every default spelled out; `parse_recipe` reads them back."""
    tree: dict[str, Any] = TypeAdapter(Recipe).dump_python(recipe)
    return tree


def recipe_yaml(recipe: Recipe) -> str:
    """`recipe_tree` as the text of a file."""
    return yaml.safe_dump(recipe_tree(recipe), sort_keys=False, allow_unicode=True)


def recipe_differences(old: object, new: object, at: str = "") -> list[str]:
    """Where two trees differ: `training.max_steps: 10 → 20`."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{at}: {_brief(old)} → {_brief(new)}"]
    keys = [*old, *(key for key in new if key not in old)]
    return [
        line
        for key in keys
        for line in recipe_differences(old.get(key), new.get(key), f"{at}.{key}".lstrip("."))
    ]


def _brief(value: object) -> str:
    return "{…}" if isinstance(value, dict) and value else str(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the recipe {path} is not a text file") from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"the recipe {path} is not valid YAML: {where}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"the recipe {path} holds no sections; it needs model, training, …")
    return tree


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Apply `a.b=value` in place; what was wrong with it, or None."""
    dotted, equals, value = text.partition("=")
    *sections, key = dotted.split(".")
    if not (equals and key and all(sections)):
        return f"{text!r} is not of the form section.key=value"
    for depth, section in enumerate(sections):
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            return f"{text!r}: {'.'.join(sections[: depth + 1])} is a value, not a section"
    try:
        tree[key] = yaml.safe_load(value)
    except yaml.YAMLError:
        return f"{text!r}: {value!r} is not valid YAML"
    return None
