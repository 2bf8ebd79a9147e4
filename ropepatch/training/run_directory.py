"""What a run leaves on disk: its recipe, metrics, checkpoints and result, each whole or absent."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ropepatch.errors import CheckpointError, ConfigError, RopepatchWarning
from ropepatch.training.checkpoints import checkpoints, damage
from ropepatch.training.recipe import Recipe, parse_recipe, recipe_differences, recipe_tree
from ropepatch.whole_files import write_whole

_STAGING = ".staging-"
_NEARLY_NOTHING = 1 << 20  #: bytes


class RunDirectory:
    """`output_dir` of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.path = Path(recipe.output_dir)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """Where the finished model or adapter lies."""
        return self.path / "final"

    @property
    def evaluation(self) -> Path:
        """Where the report of the evaluation before and after lies."""
        return self.path / "evaluation"

    def claim(self) -> None:
        """Make the directory this recipe's, or refuse; says now what saving would say later."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self.path.glob(f"{_STAGING}*"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            self._claim_recipe(self.path / "recipe.yaml")
        except OSError as error:
            raise CheckpointError(
                f"cannot write to output_dir {self.path}: {error.strerror}; choose another one"
            ) from None

    def _claim_recipe(self, path: Path) -> None:
        # Through YAML, so that what is compared is what a file can hold.
        text = yaml.safe_dump(recipe_tree(self.recipe), sort_keys=False, allow_unicode=True)
        # A run that has saved nothing holds nothing to protect: its recipe may be corrected.
        if path.exists() and (self.result.exists() or any(self.path.glob("checkpoint-*"))):
            self._refuse_other(_stored_tree(path), yaml.safe_load(text))
        write_whole(path, text)

    def _refuse_other(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        # A directory may be moved, and a finished run measured again in another way.
        free = {"output_dir": None, "evaluation": None}
        differences = recipe_differences(old | free, new | free)
        if differences:
            raise ConfigError(
                f"output_dir {self.path} belongs to a run of another recipe "
                f"({'; '.join(differences)}); choose another output_dir, or delete this one"
            )

    def last_good_checkpoint(self) -> Path | None:
        """The newest checkpoint to go on from; damaged ones are set aside, with a RopepatchWarning."""
        damaged = []
        for checkpoint in checkpoints(self.path):
            reason = damage(checkpoint)
            if reason is None:
                break
            # As the newest by number it would outlive the good ones that are written before it.
            aside = self.path / f"damaged-{checkpoint.name}"
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            damaged.append(f"{checkpoint.name} is not whole ({reason}), kept as {aside.name}")
        newest = next(iter(checkpoints(self.path)), None)
        if damaged:
            start = "starts from the beginning" if newest is None else f"goes on from {newest.name}"
            warnings.warn(
                f"{self.path}: {'; '.join(damaged)}; the run {start}",
                RopepatchWarning,
                stacklevel=2,
            )
        return newest

    @contextmanager
    def publish(self, name: str) -> Iterator[Path]:
        """A directory aside; what the block puts at `name` in it is there afterwards, or nothing.

        Raises CheckpointError for all that goes wrong.
        """
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self.path) as staging:
            try:
                yield Path(staging)
                _replace_directory(Path(staging, name), self.path / name)
            except Exception as error:
                raise CheckpointError(
                    f"could not save {self.path / name}: {self._reason(error)}; {self.kept()}; "
                    "once that is mended, run the same recipe again to go on from there"
                ) from error

    def _reason(self, error: Exception) -> str:
        """On a full disk torch and safetensors say little or something else."""
        if shutil.disk_usage(self.path).free < _NEARLY_NOTHING:
            return "the disk is full"
        return str(error)

    def kept(self) -> str:
        """What is left after a run broke off, for its message."""
        if self.result.exists():
            return f"the trained model is kept: {self.result}"
        checkpoint = next(iter(checkpoints(self.path)), None)
        if checkpoint is None:
            return f"no checkpoint had been saved in {self.path} yet"
        return f"the last good checkpoint is kept: {checkpoint}"


def _stored_tree(path: Path) -> dict[str, Any]:
    """The recipe of an earlier session, with today's defaults for keys that came later."""
    tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return recipe_tree(parse_recipe(tree))
    except ConfigError:  # of another version; the differences will say in what
        return tree


def _replace_directory(source: Path, target: Path) -> None:
    """Rename; a damaged target goes to where the source was."""
    if target.exists():
        os.rename(target, source.with_name(f"{source.name}-old"))
    os.rename(source, target)
