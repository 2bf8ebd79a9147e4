"""The training mixture: exact, repeatable, scored only where something can be learned."""

import pytest
import torch

from ropepatch.corpus import RetrievalVocabulary
from ropepatch.errors import ConfigError, DataError
from ropepatch.training.chunked_loss import IGNORED
from ropepatch.training.mixture import Shares, TrainingMixture
from ropepatch.training.text import Windows

VOCABULARY = RetrievalVocabulary(keys=tuple(range(2, 34)), values=tuple(range(34, 66)))
RESERVED = {*VOCABULARY.keys, *VOCABULARY.values}
# Consecutive numbers, so that a token says which document it is from and where it stood.
DOCUMENTS = [torch.arange(100, 1600), torch.arange(2000, 2040), torch.arange(3000, 3300)]

TEXT_ONLY = Shares(retrieval=0, repeats=0)
RETRIEVAL_ONLY = Shares(retrieval=1, repeats=0)
REPEATS_ONLY = Shares(retrieval=0, repeats=1)
DRILLS_ONLY = Shares(drills=1, drill_phase=1)


def mixture(shares=None, *, length=256, samples=200, seed=0, documents=DOCUMENTS, **options):
    return TrainingMixture(
        Windows(documents, length),
        VOCABULARY,
        4096,
        samples=samples,
        seed=seed,
        shares=shares or Shares(drill_phase=0.3),
        **options,
    )


@pytest.mark.parametrize("length", [64, 255, 256, 1024])
@pytest.mark.parametrize(
    "shares", [TEXT_ONLY, RETRIEVAL_ONLY, REPEATS_ONLY, DRILLS_ONLY, Shares(drill_phase=0.5)]
)
def test_every_sequence_has_the_exact_length(shares, length):
    for item in _all(mixture(shares, length=length, samples=40)):
        assert item["input_ids"].shape == item["labels"].shape == (length,)
        assert item["input_ids"].dtype == item["labels"].dtype == torch.int64


@pytest.mark.parametrize("shares", [RETRIEVAL_ONLY, REPEATS_ONLY, DRILLS_ONLY])
def test_labels_are_the_tokens_where_they_are_scored(shares):
    for item in _all(mixture(shares, samples=40)):
        scored = item["labels"] != IGNORED
        assert torch.equal(item["labels"][scored], item["input_ids"][scored])
        assert scored.any()


def test_a_sequence_depends_on_seed_and_index_only():
    whole = list(_all(mixture()))
    again = mixture()
    for index in (150, 3, 150):
        assert torch.equal(again[index]["input_ids"], whole[index]["input_ids"])
    assert not torch.equal(mixture(seed=1)[3]["input_ids"], whole[3]["input_ids"])
    # Two sequences may fall on the same one of 1290 windows, hardly ever more than a few.
    assert len({tuple(item["input_ids"].tolist()) for item in whole}) > 0.9 * len(whole)


def test_text_is_one_run_of_one_document():
    for item in _all(mixture(TEXT_ONLY)):
        tokens = item["input_ids"]
        assert torch.equal(tokens, torch.arange(int(tokens[0]), int(tokens[0]) + 256))


def test_documents_shorter_than_the_window_are_left_out():
    seen = torch.cat([item["input_ids"] for item in _all(mixture(samples=400))])
    drilled = torch.cat([item["input_ids"] for item in _all(mixture(DRILLS_ONLY))])
    short = (seen >= 2000) & (seen < 2040)
    # A block drill may draw any token; text may not come from the short document.
    assert short.sum() <= ((drilled >= 2000) & (drilled < 2040)).sum()


def test_every_window_is_equally_likely():
    starts = [int(item["input_ids"][0]) for item in _all(mixture(TEXT_ONLY, samples=2000))]
    # 1245 windows in the first document, none in the second, 45 in the third.
    share = sum(start >= 3000 for start in starts) / len(starts)
    assert share == pytest.approx(45 / 1290, abs=0.02)


def test_all_retrieval_answers_are_scored_and_right():
    for item in _all(mixture(RETRIEVAL_ONLY)):
        tokens, labels = item["input_ids"].tolist(), item["labels"].tolist()
        keys = [token for token in tokens if token in VOCABULARY.keys]
        assert all(keys.count(key) == 2 for key in keys)
        for place, label in enumerate(labels):
            first = place == 0 or tokens.index(tokens[place - 1]) == place - 1
            if tokens[place] in VOCABULARY.keys or (tokens[place] in RESERVED and first):
                assert label == IGNORED
            elif tokens[place] in VOCABULARY.values:
                assert label == tokens[tokens.index(tokens[place - 1]) + 1]


def test_repeats_contain_a_segment_twice():
    for item in _all(mixture(REPEATS_ONLY)):
        tokens = item["input_ids"].tolist()
        assert len(tokens) - len(set(tokens)) >= 16


def test_drills_come_first_and_in_the_stated_share():
    items = list(_all(mixture(Shares(retrieval=0, repeats=0, drills=0.7, drill_phase=0.5))))
    is_text = [bool((item["input_ids"].diff() == 1).all()) for item in items]
    assert all(is_text[100:])
    assert sum(is_text[:100]) == pytest.approx(30, abs=15)


def test_scored_tokens_of_a_drill_stand_earlier_in_it():
    for item in _all(mixture(DRILLS_ONLY)):
        tokens, labels = item["input_ids"].tolist(), item["labels"].tolist()
        for place, label in enumerate(labels):
            assert label == IGNORED or label in tokens[:place]


def test_text_alone_needs_no_reserved_tokens():
    empty = RetrievalVocabulary(keys=(), values=())
    data = TrainingMixture(Windows(DOCUMENTS, 64), empty, 4096, samples=5, shares=TEXT_ONLY)
    assert len(list(_all(data))) == len(data) == 5


def test_a_target_is_what_follows_the_tokens_that_the_encoder_reads():
    for item in _all(mixture(TEXT_ONLY, target_length=64)):
        first = int(item["input_ids"][0])
        assert torch.equal(item["input_ids"], torch.arange(first, first + 192))
        assert torch.equal(item["labels"], torch.arange(first + 192, first + 256))


def test_documents_that_are_all_too_short_are_refused():
    with pytest.raises(DataError, match=r"no document fills a sequence of 1600 .* has 1500"):
        mixture(length=1600)


@pytest.mark.parametrize(
    ("shares", "complaint"),
    [
        ({"retrieval": 1.5}, "retrieval=1.5 must be a share"),
        ({"drill_phase": -0.1}, "drill_phase=-0.1 must be a share"),
        ({"retrieval": 0.7, "repeats": 0.4}, "add up to more than 1"),
    ],
)
def test_impossible_shares_are_refused(shares, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Shares(**shares)


def test_an_index_beyond_the_samples_ends_iteration():
    with pytest.raises(IndexError, match="sequence 200 of a mixture of 200"):
        mixture()[200]


def _all(data):
    return (data[index] for index in range(len(data)))
