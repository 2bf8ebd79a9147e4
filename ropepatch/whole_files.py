"""Files and directories that are never seen half written."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from ropepatch.errors import CheckpointError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: a full disk or a crash leaves the old file whole."""
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def replaced_directory(directory: Path, *, instead_of: Sequence[str]) -> Iterator[Path]:
    """A fresh directory that takes the place of `directory` when the body ends well.

    Files of the old directory that the body does not write are kept, except those that match a
    pattern of `instead_of`. Raises CheckpointError for what the file system refuses.
    """
    directory = directory.resolve()  # a link stays, and what it leads to is replaced
    if Path.cwd().is_relative_to(directory):
        raise CheckpointError(
            f"{directory} is the working directory and cannot be replaced; save to one inside it"
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(f"{directory} is a file")
        with TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            written, old = Path(scratch, "new"), Path(scratch, "old")
            written.mkdir()
            yield written
            if directory.exists():
                _keep_other_files(directory, written, instead_of)
            try:
                if directory.exists():
                    directory.rename(old)
                written.rename(directory)
            except BaseException:
                if old.exists():
                    old.rename(directory)
                raise
    except CheckpointError:
        raise
    # A disk that fills up while weights are written is a SafetensorError.
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not save to {directory}: {error}; what was there before is unchanged"
        ) from error


def _keep_other_files(old: Path, new: Path, instead_of: Sequence[str]) -> None:
    """Copy what only the old directory has, except what matches a pattern."""
    replaced = {path for pattern in instead_of for path in old.glob(pattern)}
    for path in old.iterdir():
        target = new / path.name
        if target.exists() or path in replaced:
            continue
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy2(path, target)
