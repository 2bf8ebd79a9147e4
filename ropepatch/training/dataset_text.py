"""The documents of a dataset of the datasets library: from the Hub, or from a directory."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ropepatch.checkpoint.downloads import broke_off
from ropepatch.corpus import Corpus, Document
from ropepatch.corpus.files import is_saved_dataset, row_text
from ropepatch.errors import DataError, RopepatchError
from ropepatch.training.sections import DatasetRecipe

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_LONGEST_REASON = 300  #: characters of an error of the library


def open_dataset(recipe: DatasetRecipe, text_field: str) -> Corpus:
    """One document per row of a split, which is downloaded first unless it is streamed.

    Raises DataError for all that the library refuses, here and while the rows are read.
    """
    with _explained(recipe, "cannot be opened"):
        rows, identity = _open_rows(recipe)
        if text_field in (rows.column_names or ()):
            rows = rows.select_columns([text_field])  # others may be images that are slow to decode

    def read() -> Iterator[Document | str]:
        with _explained(recipe, "broke off"):
            for number, row in enumerate(rows):
                yield row_text(row, text_field, f"{recipe.path}[{number}]")

    return Corpus(recipe.path, read, identity)


def _open_rows(recipe: DatasetRecipe) -> tuple["Dataset | IterableDataset", str | None]:
    """The rows of the split; of a stream also what tells its contents from others, unread."""
    if is_saved_dataset(Path(recipe.path)):
        return _saved_rows(recipe), None
    from datasets import load_dataset_builder

    builder = load_dataset_builder(recipe.path, recipe.name, revision=recipe.revision)
    if recipe.streaming:
        rows = builder.as_streaming_dataset(split=recipe.split)
        # The hash is that of a commit on the Hub, or of the times and sizes of local files.
        return rows, f"{recipe.path} {builder.config_id} {builder.hash} {recipe.split}"
    builder.download_and_prepare()
    return builder.as_dataset(split=recipe.split), None


def _saved_rows(recipe: DatasetRecipe) -> "Dataset":
    from datasets import DatasetDict, load_from_disk

    if recipe.name or recipe.revision or recipe.streaming:
        raise DataError(
            f"{recipe.path} was written by save_to_disk and is read from there as it is; leave "
            "name, revision and streaming of data.dataset out"
        )
    saved = load_from_disk(recipe.path)
    if not isinstance(saved, DatasetDict):
        saved = DatasetDict({str(saved.split or recipe.split): saved})
    if recipe.split not in saved:
        raise DataError(
            f"{recipe.path} has no split {recipe.split!r}; data.dataset.split can be "
            f"{', '.join(map(repr, saved))}"
        )
    return saved[recipe.split]


@contextmanager
def _explained(recipe: DatasetRecipe, what: str) -> Iterator[None]:
    """One DataError for the many that the library and what it downloads with raise."""
    try:
        yield
    except RopepatchError:
        raise
    except Exception as error:
        from datasets.exceptions import DatasetGenerationError

        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        reason = textwrap.shorten(str(cause or error), _LONGEST_REASON)
        if not broke_off(error):
            advice = (
                "check data.dataset; for what is private on the Hub, log in with `hf auth login`"
            )
        elif recipe.streaming:
            advice = "run the same recipe again: a stream is read from its start"
        else:
            advice = "run the same recipe again: what was downloaded is kept"
        raise DataError(f"the dataset {recipe.path} {what}: {reason}; {advice}") from error
