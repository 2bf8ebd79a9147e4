"""What a run leaves on disk: its recipe, metrics, checkpoints and result, each whole or absent."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ropepatch.errors import CheckpointError, ConfigError, RopepatchWarning
from ropepatch.training.checkpoints import checkpoints, damage
from ropepatch.training.recipe import (
    Recipe,
    parse_recipe,
    recipe_differences,
    recipe_tree,
    recipe_yaml,
)
from ropepatch.training.run_precision import (
    precision_at_start,
    precision_of_old_run,
    with_precision,
)
from ropepatch.whole_files import write_whole

_STAGING = ".staging-"
_NEARLY_NOTHING = 1 << 20  #: bytes
#: keys of `training` that change what a run takes, not what it learns: they may change on its way
MEMORY_ONLY = ("gradient_checkpointing", "offload_activations", "chunked_loss")


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
        self._refuse_other_run()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self.path.glob(f"{_STAGING}*"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            # Of a run that goes on, too: what may differ is as it was asked for last.
            write_whole(self.path / "recipe.yaml", recipe_yaml(self._recipe_to_keep()))
        except OSError as error:
            raise self._unwritable(error) from None

    def _recipe_to_keep(self) -> Recipe:
        """The recipe; of a run that began with 0.1, with its precision, which only the old file says."""
        began = precision_of_old_run(self.path) if any(self.path.glob("checkpoint-*")) else None
        if began is None or self.recipe.training.precision != "auto":
            return self.recipe
        return with_precision(self.recipe, began)

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot write to output_dir {self.path}: {error.strerror}; choose another one"
        )

    def check(self) -> None:
        """Refuse what `claim` would refuse, and leave everything as it is."""
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise CheckpointError(f"cannot write to output_dir {self.path}; choose another one")
        self._refuse_other_run()

    def _refuse_other_run(self) -> None:
        """Raise ConfigError where the directory holds what a run of another recipe saved."""
        path = self.path / "recipe.yaml"
        # A run that has saved nothing holds nothing to protect: its recipe may be corrected.
        saved = self.result.exists() or any(self.path.glob("checkpoint-*"))
        if path.exists() and saved:
            # Through YAML, so that what is compared is what a file can hold.
            trees = _stored_tree(path), yaml.safe_load(recipe_yaml(self.recipe))
            began = precision_at_start(self.path)
            for tree in trees:
                # A run keeps the precision that it began with, which auto leaves open.
                if began is not None and tree["training"].get("precision") == "auto":
                    tree["training"]["precision"] = began
            self._refuse_other(*trees)

    def _refuse_other(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        differences = recipe_differences(_identity(old), _identity(new))
        if differences:
            raise ConfigError(
                f"output_dir {self.path} belongs to a run of another recipe "
                f"({'; '.join(differences)}); choose another output_dir, or delete this one"
            )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """`claim`, and no other process can until the body is left, however it is."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"another process trains in output_dir {self.path}; wait for it, or choose another "
                "output_dir"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self.claim()
            yield
        finally:
            lock.release()

    def has_result(self) -> bool:
        """Whether the run is finished; a damaged result is set aside, with a RopepatchWarning."""
        if not self.result.exists():
            return False
        reason = damage(self.result)
        if reason is not None:
            aside = self._set_aside(self.result)
            _warn(f"{self.result} is not whole ({reason}), kept as {aside.name}, and is made again")
        return reason is None

    def _set_aside(self, damaged: Path) -> Path:
        """Rename what is damaged to a name that is free."""
        name = f"damaged-{damaged.name}"
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        aside = next(path for name in names if not (path := self.path / name).exists())
        damaged.rename(aside)
        return aside

    def last_good_checkpoint(self) -> Path | None:
        """The newest checkpoint to go on from; damaged ones are set aside, with a RopepatchWarning."""
        damaged = []
        for checkpoint in checkpoints(self.path):
            reason = damage(checkpoint)
            if reason is None:
                break
            # As the newest by number it would outlive the good ones that are written before it.
            aside = self._set_aside(checkpoint)
            damaged.append(f"{checkpoint.name} is not whole ({reason}), kept as {aside.name}")
        newest = next(iter(checkpoints(self.path)), None)
        if damaged:
            start = "starts from the beginning" if newest is None else f"goes on from {newest.name}"
            _warn(f"{self.path}: {'; '.join(damaged)}; the run {start}")
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


def _warn(message: str) -> None:
    warnings.warn(message, RopepatchWarning, stacklevel=3)


def _identity(tree: dict[str, Any]) -> dict[str, Any]:
    """What makes two recipes the same run: not what only changes its memory, nor where it lies.

    A directory may be moved, and a finished run measured again in another way.
    """
    training = {key: value for key, value in tree["training"].items() if key not in MEMORY_ONLY}
    return tree | {"output_dir": None, "evaluation": None, "training": training}


def _stored_tree(path: Path) -> dict[str, Any]:
    """The recipe of an earlier session, with today's defaults for keys that came later."""
    try:
        tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise CheckpointError(
            f"{path} cannot be read, so that nothing tells whether the run there is of this recipe; "
            "delete the file if it is, or choose another output_dir"
        ) from None
    try:
        return recipe_tree(parse_recipe(tree))
    except ConfigError:  # of another version; the differences will say in what
        return tree


def _replace_directory(source: Path, target: Path) -> None:
    """Rename; a damaged target goes to where the source was."""
    if target.exists():
        os.rename(target, source.with_name(f"{source.name}-old"))
    os.rename(source, target)
