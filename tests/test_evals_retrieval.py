"""Forced choice with models whose answers are known."""

from types import SimpleNamespace

import pytest
import torch

from ropepatch.corpus import RetrievalVocabulary
from ropepatch.evals.retrieval import choose, retrieval_prompts
from ropepatch.evals.statistics import wilson
from ropepatch.evals.tasks.prompt import digest

VOCABULARY = RetrievalVocabulary(keys=tuple(range(100, 164)), values=tuple(range(200, 264)))
TEXTS = [torch.arange(600) % 90, torch.arange(700) % 80]


class FakeModel:
    """Answers for the last token of each row as `rate(context)` says: logits over 300 tokens."""

    device = torch.device("cpu")

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, *, input_ids, use_cache, logits_to_keep):
        logits = torch.stack([self.rate(row) for row in input_ids])
        return SimpleNamespace(logits=logits[:, None])


def copies(row):
    place = (row[:-1] == row[-1]).nonzero()[0, 0]
    return torch.nn.functional.one_hot(row[place + 1], 300).float()


def copies_the_last_value(row):
    values = row[(row >= 200) & (row < 264)]
    return torch.nn.functional.one_hot(values[-1], 300).float()


def prefers_a_token_outside_of_the_choice(row):
    logits = copies(row)
    logits[50] = 9.0
    return logits


def prompts(length=128, count=64, seed=0, **options):
    return retrieval_prompts(VOCABULARY, TEXTS, length=length, count=count, seed=seed, **options)


def test_a_model_that_copies_is_always_right():
    assert set(choose(FakeModel(copies), prompts())) == {1.0}
    assert {prompt.chance for prompt in prompts()} == {1 / 8}


def test_only_the_values_in_context_are_a_choice():
    assert all(choose(FakeModel(prefers_a_token_outside_of_the_choice), prompts()))


def test_a_model_that_guesses_is_at_chance():
    generator = torch.Generator().manual_seed(0)
    guesser = FakeModel(lambda row: torch.rand(300, generator=generator))
    interval = wilson(int(sum(choose(guesser, prompts(count=512)))), 512)
    assert interval.low <= 1 / 8 <= interval.high


def test_a_model_that_takes_any_value_is_at_chance():
    right = sum(choose(FakeModel(copies_the_last_value), prompts(count=2048)))
    interval = wilson(int(right), 2048)
    assert interval.low <= 1 / 8 <= interval.high


@pytest.mark.parametrize("logit", [0.0, float("nan")])
def test_a_model_without_preference_is_never_right(logit):
    assert not any(choose(FakeModel(lambda row: torch.full((300,), logit)), prompts()))


def test_chance_follows_the_number_of_pairs():
    assert {prompt.chance for prompt in prompts(pairs=4)} == {1 / 4}


def test_prompts_have_the_exact_length_and_many_distances():
    asked = prompts(length=256)
    assert {len(prompt.input_ids) for prompt in asked} == {256}
    assert len({prompt.distance // 32 for prompt in asked}) >= 7


def test_prompts_depend_on_their_number_and_not_on_how_many_are_asked():
    few, many = prompts(count=4), prompts(count=9)
    for ours, theirs in zip(few, many[:4], strict=True):
        assert torch.equal(ours.input_ids, theirs.input_ids)


def test_prompts_of_two_seeds_differ():
    assert digest(prompts(seed=0)) != digest(prompts(seed=1))


def test_prompts_may_start_with_bos_at_the_same_length():
    asked = prompts(bos=1)
    assert {(len(prompt.input_ids), int(prompt.input_ids[0])) for prompt in asked} == {(128, 1)}
    assert all(choose(FakeModel(copies), asked))


def test_distances_count_from_the_key_to_its_query():
    for prompt in prompts(count=8):
        ids = prompt.input_ids
        assert ids[len(ids) - 1 - prompt.distance] == ids[-1]
