"""Recipe files: YAML, which may extend one another."""

from pathlib import Path
from typing import Any

import yaml

from ropepatch.bundled_recipes import bundled_recipes
from ropepatch.errors import ConfigError
from ropepatch.spelling import did_you_mean

#: A setting's name now, and its name up to version 0.1: who gives one of them means it in place of the other.
OTHER_NAME = {"bf16": "precision", "precision": "bf16"}


def read_recipe_file(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mappings of a file, laid over those of the file that it `extends`, which lies beside it."""
    tree = _read_yaml(path)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    above = (*above, path.resolve())
    if not isinstance(base, str) or (path.parent / base).resolve() in above:
        raise ConfigError(
            f"extends in {path} is {base!r}; allowed: the name of another recipe, as long as no two "
            "extend one another"
        )
    return _laid_over(read_recipe_file(path.parent / base, above), tree)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _laid_over(below[key], above[key]) for key in above if _are_trees(below, above, key)
    }
    kept = {key: value for key, value in below.items() if OTHER_NAME.get(key) not in above}
    return kept | above | both


def _are_trees(below: dict[str, Any], above: dict[str, Any], key: str) -> bool:
    return isinstance(below.get(key), dict) and isinstance(above[key], dict)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key may come once; PyYAML takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []  # a key that is a list or a mapping is refused below
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} comes twice", problem_mark=key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        hint = _hint(path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}{hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the recipe {path} is not a text file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"the recipe {path} is not valid YAML: {_problem(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"the recipe {path} holds no sections; it needs model, training, …")
    return tree


def _hint(path: Path) -> str:
    """Suggest a recipe in place of a file that does not exist."""
    bundled = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if bundled in bundled_recipes():
        return f"; run `ropepatch recipes copy {bundled}` for the recipe of that name"
    beside = [str(file) for file in path.parent.glob("*.yaml")]
    return did_you_mean(path, beside, quoted=False) or (
        "; `ropepatch recipes` lists those that come with ropepatch"
    )


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    return f"line {mark.line + 1}: {getattr(error, 'problem', None)}"
