"""Packed sequences: full, made of whole documents or windows of one, the same for a seed and index."""

import numpy as np
import pytest
import torch

from ropepatch.corpus import RetrievalVocabulary
from ropepatch.errors import ConfigError, DataError
from ropepatch.training.chunked_loss import IGNORED
from ropepatch.training.mixture import Shares, TrainingMixture
from ropepatch.training.packing import Packing, Packs
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.text import Windows

LENGTH = 64
VOCABULARY = RetrievalVocabulary(keys=tuple(range(2, 34)), values=tuple(range(34, 66)))
# Consecutive numbers, a thousand to each document, so that a token says where it is from.
SIZES = [5, 17, 40, 63, 200, 300]
DOCUMENTS = [torch.arange(1000 * n, 1000 * n + size) for n, size in enumerate(SIZES, 1)]
SHORT = [document for document in DOCUMENTS if len(document) < LENGTH]
LONG = [document for document in DOCUMENTS if len(document) >= LENGTH]
TEXT_ONLY = Shares(retrieval=0, repeats=0)


def mixture(documents=DOCUMENTS, *, shares=TEXT_ONLY, samples=200, seed=0, **packing):
    text = Packs(documents, LENGTH, Packing(**packing))
    return TrainingMixture(text, VOCABULARY, 8000, samples=samples, seed=seed, shares=shares)


def sequences(*arguments, **options):
    data = mixture(*arguments, **options)
    return [data.sequence(index) for index in range(len(data))]


def pieces(text):
    return np.split(text.tokens, text.starts[1:])


def test_every_piece_is_a_whole_document_or_a_window_of_one():
    cut_at = set()
    for text in sequences():
        assert len(text.tokens) == LENGTH
        *others, last = pieces(text)
        for piece in [*others, last]:
            assert (np.diff(piece) == 1).all()
        for piece in others:
            assert len(piece) == SIZES[piece[0] // 1000 - 1]
        cut_at.add(int(last[0] % 1000))
    assert len(cut_at) > 50  # 201 + 237 windows fill a sequence, and others what is left of one


@pytest.mark.parametrize("borders", ["positions", "mask"])
def test_no_token_is_scored_that_another_document_would_have_to_predict(borders):
    for text, item in zip(sequences(), mixture(borders=borders), strict=False):
        expected = text.tokens.copy()
        expected[list(text.starts)] = IGNORED
        assert item["labels"].tolist() == expected.tolist()


def test_positions_start_anew_in_every_document_and_there_is_no_mask():
    for text, item in zip(sequences(), mixture(), strict=False):
        assert item.keys() == {"input_ids", "labels", "position_ids"}
        expected = [place for piece in pieces(text) for place in range(len(piece))]
        assert item["position_ids"].tolist() == expected


def test_a_mask_shows_every_token_those_before_it_in_its_document():
    for text, item in zip(sequences(), mixture(borders="mask"), strict=False):
        assert item.keys() == {"input_ids", "labels", "attention_mask"}
        assert item["attention_mask"].shape == (1, LENGTH, LENGTH)
        assert item["attention_mask"].dtype == torch.bool
        document = text.tokens // 1000 + 10 * np.cumsum(np.isin(np.arange(LENGTH), text.starts))
        for query in range(LENGTH):
            seen = [key <= query and document[key] == document[query] for key in range(LENGTH)]
            assert item["attention_mask"][0, query].tolist() == seen


def test_a_sequence_depends_on_seed_and_index_only():
    whole = sequences()
    again = mixture()
    for index in (150, 3, 150):
        assert (again.sequence(index).tokens == whole[index].tokens).all()
    assert (mixture(seed=1).sequence(3).tokens != whole[3].tokens).any()


def test_tokens_of_long_and_short_documents_are_about_equally_likely():
    # 10 × 64 tokens in one document, and 16 × 40 in short ones.
    documents = [torch.ones(640), *[torch.zeros(40)] * 16]
    drawn = np.mean([text.tokens.mean() for text in sequences(documents, samples=1000)])
    assert drawn == pytest.approx(0.5, abs=0.06)
    # Were all seventeen documents equally likely, it would be 64 of 64 + 16 × 40 tokens.


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_share_of_sequences_is_one_window_of_a_long_document(share):
    texts = sequences(long_documents=share, samples=500)
    long = [int(text.tokens[0] // 1000) > len(SHORT) for text in texts]
    assert np.mean(long) == pytest.approx(share, abs=0.07)
    for text, is_long in zip(texts, long, strict=True):
        assert (len(text.starts) == 1) == is_long
        assert is_long or all(piece[0] // 1000 <= len(SHORT) for piece in pieces(text))


@pytest.mark.parametrize("borders", ["positions", "mask"])
def test_all_sequences_of_a_mixture_have_the_same_columns(borders):
    shares = Shares(retrieval=0.3, repeats=0.3, drills=0.5, drill_phase=0.5)
    items = list(mixture(shares=shares, borders=borders, long_documents=0.5, samples=100))
    columns = {name: values.shape for name, values in items[0].items()}
    for item in items:
        assert {name: values.shape for name, values in item.items()} == columns


def test_retrieval_keeps_to_one_long_document():
    data = mixture(shares=Shares(retrieval=1.0, repeats=0))
    reserved = {*VOCABULARY.keys, *VOCABULARY.values}
    for index in range(50):
        text = data.sequence(index)
        words = [token // 1000 for token in text.tokens.tolist() if token not in reserved]
        assert len(set(words)) == 1
        assert text.columns["position_ids"].tolist() == list(range(LENGTH))


def test_a_segment_is_repeated_within_one_document():
    seen = 0
    for text in sequences(shares=Shares(retrieval=0, repeats=1), samples=100):
        for piece in pieces(text):
            assert len(set(piece // 1000)) == 1
            seen += len(piece) - len(set(piece.tolist()))
    assert seen > 100


@pytest.mark.parametrize("source", [Windows, lambda *of: Packs(*of, Packing())])
def test_text_that_cannot_fill_one_sequence_is_refused_as_that(source):
    few = [torch.arange(2), torch.arange(3)]
    with pytest.raises(DataError, match="the text has 5 tokens in all, and a sequence needs 6"):
        source(few, 6)
    with pytest.raises(DataError, match="the text has 0 tokens in all"):
        source([], 6)


def test_text_that_fills_one_sequence_exactly_is_packed():
    text = Packs([torch.arange(2), torch.arange(3)], 5, Packing())
    assert len(text.draw(np.random.default_rng(0)).tokens) == 5


def test_retrieval_without_a_long_document_is_refused_before_training():
    with pytest.raises(
        DataError, match=r"no document fills .* 64 tokens, .* 4 has 63; mixture\.retr"
    ):
        mixture(SHORT, shares=Shares(retrieval=0.1))
    assert len(sequences(SHORT)) == 200


def test_shares_that_the_documents_cannot_have_are_refused():
    with pytest.raises(DataError, match=r"no document fills a sequence of 64 tokens"):
        mixture(SHORT, long_documents=0.5)
    with pytest.raises(DataError, match=r"every document fills .* cannot be 0\.5; leave it out"):
        mixture(LONG, long_documents=0.5)
    assert len(sequences(LONG, long_documents=1.0)) == 200
    with pytest.raises(ConfigError, match=r"long_documents=1\.5 must be a share"):
        Packing(long_documents=1.5)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"packing": {}, "positions": {"target": 1024}}, "packing joins several; take one"),
        ({"packing": {}, "target_length": 8, "mixture": {"retrieval": 0}}, "is for causal models"),
        ({"packing": {"borders": "mask"}, "length": 32768}, r"\(1\.0 GiB a sequence at 32768"),
        (
            {"packing": {}, "training": {"shifted_attention": {"group": 8}}},
            "shifted_attention knows no borders of documents",
        ),
        ({"packing": {"borders": "masks"}}, "data.packing.borders must be 'positions' or 'mask'"),
    ],
)
def test_packing_that_cannot_be_is_refused(data, complaint):
    training = {"max_steps": 1, "learning_rate": 1, **data.pop("training", {})}
    tree = {"model": {"path": "x"}, "training": training, "output_dir": "out", "data": data}
    with pytest.raises(ConfigError, match=complaint):
        parse_recipe(tree)
