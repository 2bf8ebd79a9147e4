"""Retrieval prompts and sequences: exact lengths, right answers, untouched text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropepatch.corpus import RetrievalVocabulary, retrieval_prompt, retrieval_sequence
from ropepatch.corpus.retrieval import predictable_tokens
from ropepatch.errors import ConfigError, DataError

VOCABULARY = RetrievalVocabulary(keys=tuple(range(2, 34)), values=tuple(range(34, 66)))
TEXT = torch.arange(100, 2500)  # consecutive numbers: any gap or reordering shows


@given(length=st.integers(20, 600), pairs=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_the_answer_is_the_value_behind_the_queried_key(length, pairs, seed):
    prompt = retrieval_prompt(VOCABULARY, TEXT, length=length, pairs=pairs, seed=seed)
    tokens = prompt.input_ids.tolist()
    assert len(tokens) == length
    place = tokens.index(tokens[-1])
    assert prompt.answer == tokens[place + 1]
    assert prompt.distance == length - 1 - place
    assert tokens.count(tokens[-1]) == 2


@given(length=st.integers(20, 600), pairs=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_candidates_are_the_values_of_the_context(length, pairs, seed):
    prompt = retrieval_prompt(VOCABULARY, TEXT, length=length, pairs=pairs, seed=seed)
    values = [token for token in prompt.input_ids.tolist() if token in VOCABULARY.values]
    assert sorted(prompt.candidates) == sorted(values)
    assert len(set(values)) == pairs


@given(seed=st.integers(0, 2**32))
def test_the_text_around_the_pairs_is_one_run_of_the_document(seed):
    prompt = retrieval_prompt(VOCABULARY, TEXT, length=256, seed=seed)
    words = prompt.input_ids[prompt.input_ids >= 100]
    assert len(words) == 256 - 2 * 8 - 1
    assert torch.equal(words, torch.arange(int(words[0]), int(words[0]) + len(words)))


def test_distances_cover_the_window_evenly():
    distances = [
        retrieval_prompt(VOCABULARY, TEXT, length=1024, seed=seed).distance for seed in range(400)
    ]
    quarters = torch.histc(torch.tensor(distances, dtype=torch.float64), 4, 1, 1023)
    assert quarters.min() > 60  # 100 expected in each; 60 is more than four deviations below


def test_a_prompt_depends_on_its_seed_only():
    first, same, other = (
        retrieval_prompt(VOCABULARY, TEXT, length=128, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first.input_ids, same.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)


@given(pairs=st.integers(1, 12), queries=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_every_query_of_a_sequence_is_answered_from_its_context(pairs, queries, seed):
    sequence = retrieval_sequence(
        VOCABULARY, TEXT, length=200, pairs=pairs, queries=queries, seed=seed
    ).tolist()
    assert len(sequence) == 200
    context, asked = sequence[: 200 - 2 * queries], sequence[200 - 2 * queries :]
    for key, value in zip(asked[::2], asked[1::2], strict=True):
        assert context[context.index(key) + 1] == value
    assert len(set(asked[::2])) == min(pairs, queries)


def test_only_text_and_repeated_pairs_are_predictable():
    #         text key value text key value | key value key value key wrong
    tokens = [100, 2, 40, 101, 3, 41, 3, 41, 2, 40, 2, 50]
    expected = [1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0]
    found = predictable_tokens(VOCABULARY, torch.tensor(tokens))
    assert found.astype(int).tolist() == expected


def test_a_document_that_is_too_short_is_refused():
    with pytest.raises(DataError, match="has 50 tokens, but 111 are needed"):
        retrieval_prompt(VOCABULARY, TEXT[:50], length=128, seed=0)


def test_more_pairs_than_the_sequence_holds_are_refused():
    with pytest.raises(ConfigError, match="longer than the sequence"):
        retrieval_prompt(VOCABULARY, TEXT, length=16, pairs=8, seed=0)


@pytest.mark.parametrize("pairs", [0, 33])
def test_more_pairs_than_reserved_tokens_are_refused(pairs):
    with pytest.raises(ConfigError, match=f"pairs={pairs} must lie between 1 and the 32"):
        retrieval_prompt(VOCABULARY, TEXT, length=128, pairs=pairs, seed=0)
