"""Documents that are kept from training, and measured on."""

import json

import pytest
from tiny_runs import LENGTH, pretraining_tree, write_corpus

from ropepatch.errors import ConfigError, DataError
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train
from ropepatch.training.sequences import held_out_documents, open_corpus


@pytest.fixture
def tree(tmp_path):
    """A recipe on twelve documents of JSON Lines, four of which it keeps."""
    words = write_corpus(tmp_path / "corpus.txt").read_text().split()
    texts = [" ".join([f"number{n}", *words[300 * n : 300 * n + 300]]) for n in range(12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tree = pretraining_tree(tmp_path)
    tree["data"] |= {"source": str(path), "held_out": 4}
    tree["evaluation"] = {"windows": 3, "prompts": 2}
    return tree


def numbers(documents):
    return [int(document.text.split()[0].removeprefix("number")) for document in documents]


def test_the_first_documents_are_measured_on_and_the_others_trained_on(tree):
    recipe = parse_recipe(tree)
    assert numbers(held_out_documents(recipe)) == [0, 1, 2, 3]
    assert numbers(open_corpus(recipe.data)) == list(range(4, 12))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_rows_of_a_dataset_are_kept_likewise(tree, streaming, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "lines").mkdir()
    source = tmp_path / "rows.jsonl"
    source.rename(tmp_path / "lines" / "train.jsonl")
    data = {"dataset": {"path": str(tmp_path / "lines"), "streaming": streaming}, "held_out": 4}
    tree["data"] = {"length": LENGTH, **data}
    if streaming:
        tree["model"] = {"path": "somewhere"}
    recipe = parse_recipe(tree)
    assert numbers(held_out_documents(recipe)) == [0, 1, 2, 3]
    rest = open_corpus(recipe.data)
    assert numbers(rest) == list(range(4, 12))
    # Or a stream that keeps other documents would find these tokens in the cache.
    assert (rest.identity is not None) == streaming
    if streaming:
        assert rest.identity.endswith("after 4")


def test_a_run_is_measured_on_what_it_kept(tree, tmp_path):
    result = train(parse_recipe(tree))
    assert [stage.label for stage in result.stages] == ["trained"]
    assert set(result.stages[0].documents) <= set(range(4))


def test_text_of_ones_own_must_keep_some_for_the_evaluation(tree):
    tree["data"]["held_out"] = 0
    with pytest.raises(ConfigError, match=r"nothing is kept; set data\.held_out"):
        parse_recipe(tree)


@pytest.mark.parametrize("kept", [12, 13])
def test_keeping_all_documents_leaves_none_to_train_on(tree, kept):
    tree["data"]["held_out"] = kept
    with pytest.raises(DataError, match=rf"keeps {kept} documents .* has 12; keep fewer"):
        list(open_corpus(parse_recipe(tree).data))
