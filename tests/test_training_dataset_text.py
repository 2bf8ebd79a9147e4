"""Documents of the datasets library, all from local directories."""

import json

import datasets
import pytest
from datasets import Dataset, DatasetDict
from tiny_tokenizer import tiny_tokenizer
from tokenizers import pre_tokenizers

from ropepatch.errors import ConfigError, DataError
from ropepatch.training.dataset_text import open_dataset
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.sections import DatasetRecipe
from ropepatch.training.sequences import open_corpus, training_mixtures


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No network, and nothing written to the home directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def lines(tmp_path):
    """A directory of JSON Lines, as `load_dataset` takes it."""
    directory = tmp_path / "lines"
    directory.mkdir()
    return write_rows(directory, ["first", "second", "third"])


@pytest.fixture
def saved(tmp_path):
    """A directory that save_to_disk wrote, with two splits."""
    splits = {"train": ["one", "two"], "test": ["three"]}
    DatasetDict(
        {name: Dataset.from_dict({"text": rows}, split=name) for name, rows in splits.items()}
    ).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def write_rows(directory, rows, **more):
    content = "".join(json.dumps({"text": text, "id": 0, **more}) + "\n" for text in rows)
    (directory / "train.jsonl").write_text(content, encoding="utf-8")
    return directory


def corpus(path, *, text_field="text", **options):
    return open_dataset(DatasetRecipe(path=str(path), **options), text_field)


def texts(*arguments, **options):
    return [document.text for document in corpus(*arguments, **options)]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_documents(lines, streaming):
    assert texts(lines, streaming=streaming) == ["first", "second", "third"]
    assert texts(lines, streaming=streaming) == ["first", "second", "third"]


def test_a_part_of_a_split_can_be_asked_for(lines):
    assert texts(lines, split="train[1:]") == ["second", "third"]


def test_a_saved_dataset_is_read_by_split(saved):
    assert texts(saved) == ["one", "two"]
    assert texts(saved, split="test") == ["three"]
    assert texts(saved / "test", split="test") == ["three"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_field_is_refused_with_those_there_are(lines, streaming):
    with pytest.raises(
        DataError, match=r"lines\[0\] has no field 'body'; the fields are text, id;"
    ):
        texts(lines, text_field="body", streaming=streaming)


def test_a_field_without_text_is_refused(lines):
    with pytest.raises(DataError, match=r"the field 'id' is no text but int"):
        texts(lines, text_field="id")


def test_empty_rows_are_left_out_with_a_count(lines):
    write_rows(lines, ["first", "", "third"])
    with pytest.warns(UserWarning, match=r"1 of 3 .* no text in UTF-8: .*lines\[1\]$"):
        assert texts(lines) == ["first", "third"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"split": "tset"}, r"cannot be opened: Unknown split .tset.*train.*; check data\.dataset"),
        ({"name": "de"}, r"cannot be opened: BuilderConfig 'de' not found"),
    ],
)
def test_an_unknown_part_is_refused_with_what_there_is(lines, options, complaint):
    with pytest.raises(DataError, match=complaint):
        corpus(lines, **options)


def test_an_unknown_split_of_a_saved_dataset_is_refused(saved):
    with pytest.raises(DataError, match=r"no split 'dev'; .* can be 'train', 'test'"):
        corpus(saved, split="dev")
    with pytest.raises(DataError, match=r"no split 'train'; .* can be 'test'"):
        corpus(saved / "test")


@pytest.mark.parametrize("options", [{"name": "de"}, {"revision": "1"}, {"streaming": True}])
def test_what_a_saved_dataset_has_not_is_refused(saved, options):
    with pytest.raises(DataError, match=r"leave name, revision and streaming of data\.dataset out"):
        corpus(saved, **options)


def test_a_dataset_that_cannot_be_reached_is_refused():
    with pytest.raises(DataError, match=r"nobody/nothing cannot be opened: Couldn't reach"):
        corpus("nobody/nothing")


def test_a_damaged_file_is_refused_with_its_cause(lines):
    (lines / "train.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(
        DataError, match=r"cannot be opened: JSON parse error.*; check data\.dataset"
    ):
        corpus(lines)


def test_an_interrupted_download_says_that_it_goes_on(lines, monkeypatch):
    def break_off(builder):
        raise ConnectionError("peer closed connection without sending complete message body")

    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", break_off)
    with pytest.raises(
        DataError, match=r"peer closed .*; run the same recipe again: what was down"
    ):
        corpus(lines)


def test_a_stream_that_breaks_off_says_so(lines, monkeypatch):
    opened = corpus(lines, streaming=True)

    def rows(self):
        yield {"text": "first"}
        raise TimeoutError("timed out")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", rows)
    with pytest.raises(
        DataError, match=r"broke off: timed out; run the same recipe again: a stream"
    ):
        list(opened)


def test_a_stream_is_known_by_what_its_files_are(lines, tmp_path):
    before = corpus(lines, streaming=True).identity
    assert corpus(lines, streaming=True).identity == before
    write_rows(lines, ["first", "second", "third", "fourth"])
    assert corpus(lines, streaming=True).identity != before
    assert corpus(lines).identity is None


@pytest.mark.parametrize(
    ("max_tokens", "streaming", "documents"),
    # Rows have 10 tokens with BOS; the run takes 2 steps of 3 sequences of 8 tokens.
    [(None, True, 5), (None, False, 100), (33, True, 4), (33, False, 4)],
)
def test_of_a_stream_as_much_is_read_as_a_run_can_use(lines, max_tokens, streaming, documents):
    write_rows(lines, [" ".join(["w3"] * 9)] * 100)
    dataset = {"path": str(lines), "streaming": streaming}
    data = {"dataset": dataset, "length": 8, "mixture": {"retrieval": 0}, "max_tokens": max_tokens}
    training = {"max_steps": 2, "per_device_batch_size": 3, "learning_rate": 1}
    tree = {"model": {"path": "x"}, "training": training, "data": data, "output_dir": "out"}
    recipe = parse_recipe({**tree, "evaluation": None})
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (mixture,) = training_mixtures(recipe, open_corpus(recipe.data), tokenizer)
    assert [len(document) for document in mixture.text.documents] == [10] * documents


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"source": "a", "dataset": {"path": "b"}}, "takes either source or dataset"),
        ({"files": ["*.py"]}, "files chooses from a directory"),
        ({"dataset": {"path": "b"}, "files": ["*.py"]}, "files chooses from a directory"),
        ({"dataset": {"path": "b", "streaming": True}}, "model.config trains a tokenizer on all"),
        ({"dataset": {"name": "b"}}, "data.dataset.path is missing"),
        ({"dataset": {"path": "a/b"}}, "not trained on, and of a/b nothing is kept"),
    ],
)
def test_contradictions_about_sources_are_refused(data, complaint):
    tree = {"model": {"config": {}}, "training": {"max_steps": 1, "learning_rate": 1}}
    with pytest.raises(ConfigError, match=complaint):
        parse_recipe({**tree, "output_dir": "out", "data": data})
