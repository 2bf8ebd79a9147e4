"""The recipes and checkpoints that come with ropepatch, listed and copied."""

import json
import re
import shlex
import shutil
from pathlib import Path

from ropepatch.errors import ConfigError
from ropepatch.spelling import did_you_mean
from ropepatch.whole_files import replaced_directory, write_whole

_BUNDLED_PATH = re.compile(r"(?<=path: )recipes/\S+")
_EXTENDS = re.compile(r"^extends: (\S+)$", re.MULTILINE)
_FIRST_SENTENCE = re.compile(r".*?\.(?=\s|$)")


def recipes_directory() -> Path:
    """Directory of the recipes: inside an installed package, beside the package in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def bundled_recipes() -> dict[str, Path]:
    """The recipe files by name, such as `convert/tiny-llama-to-alibi`; the short names come first."""
    root = recipes_directory()
    names = {path.relative_to(root).with_suffix(""): path for path in root.rglob("*.yaml")}
    ordered = sorted(names, key=lambda name: (len(name.parts), name.parts))
    return {name.as_posix(): names[name] for name in ordered}


def bundled_checkpoints() -> dict[str, Path]:
    """The checkpoint directories by name, such as `checkpoints/tiny-llama`."""
    directories = sorted((recipes_directory() / "checkpoints").iterdir())
    return {f"checkpoints/{path.name}": path for path in directories}


def summary(path: Path) -> str:
    """First sentence that a recipe, or the model card of a checkpoint, says about itself."""
    if path.is_dir():
        text = (path / "README.md").read_text(encoding="utf-8").partition("\n# ")[2]
        paragraph = text.split("\n\n")[1]
    else:
        comments = path.read_text(encoding="utf-8").partition("\n#\n")[2]
        paragraph = re.sub("^# ?", "", comments, flags=re.MULTILINE)
    sentence = _FIRST_SENTENCE.match(" ".join(paragraph.split()))
    assert sentence is not None, f"{path} says nothing about itself"
    return sentence.group()


def copy_bundled(name: str, directory: Path) -> list[Path]:
    """Copy a recipe, with the recipes that it extends, or a checkpoint; return what was written.

    Raises ConfigError for an unknown name and for a place that is taken.
    """
    name = name.removesuffix(".yaml")
    recipes, checkpoints = bundled_recipes(), bundled_checkpoints()
    if name not in recipes and name not in checkpoints:
        known = [*recipes, *checkpoints]
        same = [each for each in known if Path(each).name == name]
        hint = (
            f"; did you mean {' or '.join(same)}?"
            if same
            else did_you_mean(name, known, quoted=False)
        )
        raise ConfigError(
            f"there is no recipe {name!r}{hint or '; run `ropepatch recipes` to list them'}"
        )
    source = recipes.get(name) or checkpoints[name]
    target = directory / source.name
    if target.exists():
        raise ConfigError(f"{target} exists already; name another directory, or move it away")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            with replaced_directory(target, instead_of=()) as written:
                shutil.copytree(source, written, dirs_exist_ok=True)
            return [target]
        return _copy_recipe(source, directory)
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be copied to {directory} ({error.strerror or error}); name a directory that can "
            "be written"
        ) from error


def _copy_recipe(source: Path, directory: Path) -> list[Path]:
    """Copy a recipe and, where it is not there yet, the one that it extends."""
    target = directory / source.name
    text = source.read_text(encoding="utf-8")
    write_whole(target, _adapted(text, source, target))
    base = _EXTENDS.search(text)
    if base is None or (directory / base.group(1)).exists():
        return [target]
    return [target, *_copy_recipe(source.parent / base.group(1), directory)]


def _adapted(text: str, source: Path, target: Path) -> str:
    """Text of a recipe that runs from anywhere: its command names `target`, its paths are absolute."""
    root = recipes_directory()
    command, end, rest = text.partition("\n")
    named = f"recipes/{source.relative_to(root).as_posix()}"
    command = command.replace(named, shlex.quote(target.as_posix()))

    def absolute(match: re.Match[str]) -> str:
        return json.dumps((root.parent / match.group()).as_posix(), ensure_ascii=False)

    return command + end + _BUNDLED_PATH.sub(absolute, rest)
