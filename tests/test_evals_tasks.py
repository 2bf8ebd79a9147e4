"""Prompts of every task: their length, their place in a numbered list, what they hold."""

import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_sources import SOURCES, byte_level, documents, source
from tiny_tokenizer import tiny_tokenizer

from ropepatch.corpus import RetrievalVocabulary, retrieval_prompt
from ropepatch.errors import ConfigError, DataError, PromptLengthError
from ropepatch.evals.tasks import Place, Source, expand, make_prompts, task

OFFLINE = (
    *("passkey", "needle", "niah_single_1", "niah_single_2", "niah_single_3"),
    *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue"),
    *("niah_multiquery", "vt", "cwe", "fwe"),
)
NEEDLES = ("passkey", "needle", *(name for name in OFFLINE if name.startswith("niah_")))
#: What RULER lets a model answer, and the numbers of the two other tasks.
ANSWER_TOKENS = {"passkey": 10, "needle": 10, "vt": 30, "cwe": 120, "fwe": 50}


def made(name, length, number=0, seed=0, kind="byte level"):
    return task(name).prompt(source(kind), Place(length, number, seed))


def text(prompt, kind="byte level"):
    return source(kind).tokenizer.decode(prompt.input_ids)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(OFFLINE),
    length=st.integers(32, 2500) | st.integers(4090, 5000),
    number=st.integers(0, 30),
    kind=st.sampled_from(SOURCES),
)
def test_a_prompt_and_its_answer_have_exactly_the_length_or_are_refused(name, length, number, kind):
    try:
        prompt = made(name, length, number, kind=kind)
    except PromptLengthError:
        return
    assert len(prompt.input_ids) + prompt.max_new_tokens == length
    assert prompt.max_new_tokens >= len(prompt.answer)
    assert prompt.max_new_tokens >= min(ANSWER_TOKENS.get(name, 128), length // 32)
    assert prompt.without is None or len(prompt.without) == len(prompt.input_ids)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("name", OFFLINE)
def test_every_task_fits_into_4096_tokens_or_says_how_many_it_needs(name, kind):
    try:
        prompt = made(name, 4096, kind=kind)
    except PromptLengthError as error:
        enough = int(re.search(r"use about (\d+) or more", str(error))[1])
        prompt = made(name, enough, kind=kind)
    least = {"cwe": 120, "vt": 30, "fwe": 50, "passkey": 10, "needle": 10}.get(name, 128)
    # What a list of words does not fill is left to the answer, and is less than a word of it.
    assert least <= prompt.max_new_tokens < least + (60 if name in ("cwe", "fwe") else 1)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_length_that_is_too_short_is_refused_with_one_that_is_not(name):
    with pytest.raises(PromptLengthError, match="use about") as refused:
        made(name, 40)
    enough = int(re.search(r"use about (\d+)", str(refused.value))[1])
    assert len(made(name, enough).input_ids) < enough


def test_needle_and_passkey_fit_into_128_tokens():
    # All but what an answer takes: five digits in at most six tokens, and at least 128/32.
    assert {len(made(name, 128).input_ids) for name in ("needle", "passkey")} <= {122, 123, 124}


@pytest.mark.parametrize("name", [*OFFLINE, "kv"])
def test_the_first_of_more_prompts_are_the_same(name):
    few = make_prompts([name], source(), lengths=[1300], count=2).prompts[name][1300]
    many = make_prompts([name], source(), lengths=[1300], count=3).prompts[name][1300]
    assert [prompt.digest for prompt in few] == [prompt.digest for prompt in many[:2]]
    assert len({prompt.digest for prompt in many}) == 3


@pytest.mark.parametrize("name", [*OFFLINE, "kv"])
def test_another_seed_makes_other_prompts_with_other_haystacks(name):
    one, other = made(name, 1300, seed=0), made(name, 1300, seed=1)
    assert one.digest != other.digest
    size = min(len(one.input_ids), len(other.input_ids))
    assert (one.input_ids[:size] != other.input_ids[:size]).float().mean() > 0.1


@pytest.mark.parametrize("name", [*OFFLINE, "kv"])
def test_bos_comes_once_and_first(name):
    tokenizer = byte_level()
    with_bos = Source(tokenizer, documents(), bos=True)
    prompt = task(name).prompt(with_bos, Place(1300, 0, 0))
    assert (prompt.input_ids == tokenizer.bos_token_id).nonzero().tolist() == [[0]]
    assert len(prompt.input_ids) + prompt.max_new_tokens == 1300


@pytest.mark.parametrize("kind", [*SOURCES, "one line"])
@pytest.mark.parametrize("name", NEEDLES)
def test_needles_end_at_their_distance_and_stand_at_their_depth(name, kind):
    prompt = made(name, 1300, 3, kind=kind)
    tokenizer = source(kind).tokenizer
    end = len(prompt.input_ids) - prompt.distance
    assert prompt.references[0] in tokenizer.decode(prompt.input_ids[:end])
    start = end - (50 if name == "passkey" else 8)  # it says its key twice
    assert prompt.references[0] not in tokenizer.decode(prompt.input_ids[:start])
    without_ends = len(prompt.answer) + 250  # instructions, question and the needles themselves
    assert abs(end / len(prompt.input_ids) - prompt.depth) < without_ends / 1300


@pytest.mark.parametrize("name", ["needle", "passkey"])
def test_eleven_prompts_in_a_row_have_every_depth_once(name):
    depths = [made(name, 256, number).depth for number in range(22)]
    assert sorted(depths[:11]) == sorted(depths[11:]) == [n / 10 for n in range(11)]


def test_the_needle_stands_at_its_depth_to_the_token():
    for number in range(11):
        prompt = made("needle", 256, number)
        assert len(prompt.input_ids) == len(prompt.without)
        # Where the needle stands, or one further on if a token is the same.
        before = int((prompt.input_ids == prompt.without).long().argmin())
        tail = source().tokenizer.decode(prompt.input_ids).rindex("# The number of the")
        question = len(source().tokenizer(text(prompt)[tail - 1 :])["input_ids"])
        end = len(prompt.input_ids) - prompt.distance
        room = len(prompt.input_ids) - question - (end - before)
        assert abs(before - prompt.depth * room) <= 2


@pytest.mark.parametrize(
    "name", ["passkey", "needle", "niah_single_1", "niah_single_3", "niah_multikey_1"]
)
def test_without_the_needle_its_value_is_gone_and_the_question_stays(name):
    prompt = made(name, 700, 5)
    without = source().tokenizer.decode(prompt.without)
    assert prompt.references[0] in text(prompt)
    assert prompt.references[0] not in without
    assert without[-20:] == text(prompt)[-20:]


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("name", OFFLINE)
def test_choices_are_different_equally_long_and_chance_is_one_over_them(name, kind):
    prompt = made(name, 1300, kind=kind)
    assert len({len(choice) for choice in prompt.candidates}) == 1
    assert len({tuple(choice.tolist()) for choice in prompt.candidates}) == len(prompt.candidates)
    assert prompt.chance == pytest.approx(1 / len(prompt.candidates))
    assert 1 < len(prompt.candidates) <= 8


@pytest.mark.parametrize(
    "name", ["niah_multikey_1", "niah_multikey_2", "niah_multiquery", "vt", "cwe", "fwe"]
)
def test_wrong_answers_stand_in_the_context(name):
    prompt = made(name, 1300)
    wrong = [source().tokenizer.decode(choice).split()[-1] for choice in prompt.candidates[1:]]
    assert wrong
    assert all(answer in text(prompt) for answer in wrong)
    assert not {*wrong} & {*prompt.references[:1]}


def test_wrong_answers_to_a_single_needle_stand_nowhere():
    prompt = made("niah_single_2", 1300)
    for choice in prompt.candidates[1:]:
        assert source().tokenizer.decode(choice).strip() not in text(prompt)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("name", ["passkey", "niah_multivalue", "vt", "cwe", "fwe"])
def test_the_answer_goes_on_as_the_whole_text_would_be_tokenised(name, kind):
    prompt, tokenizer = made(name, 1500, kind=kind), source(kind).tokenizer
    ids = torch.cat([prompt.input_ids, prompt.answer])
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    again = tokenizer(whole, add_special_tokens=False)["input_ids"]
    end = len(prompt.answer) + 8  # and the end of the question
    assert again[-end:] == ids[-end:].tolist()


@pytest.mark.parametrize("kind", SOURCES)
def test_no_space_comes_between_pieces(kind):
    whole = text(made("passkey", 700, 3, kind=kind), kind)
    assert re.search(r"\.\nThe pass key is \d{5}\. Remember it\. \d{5} is the pass key\.\n", whole)
    assert whole.endswith("\nWhat is the pass key? The pass key is")
    assert not re.search(r" \n|\n |  ", whole)


def test_a_prompt_of_noise_is_tokenised_as_its_whole_text_would_be():
    prompt = made("passkey", 700, 1)
    # The loop's first token may be cut from within a word, so the text is compared from the next line on.
    whole = text(prompt)
    start = whole.index("\n", whole.index("\n") + 1)
    again = byte_level()(whole[start:], add_special_tokens=False)["input_ids"]
    assert again == prompt.input_ids[-len(again) :].tolist()


def test_key_value_prompts_are_those_of_the_published_numbers():
    # The seed of prompt i is the first word that SeedSequence makes of (seed, length, i).
    vocabulary = RetrievalVocabulary.from_tokenizer(byte_level())
    texts = source().texts
    after = make_prompts(["kv"], source(), lengths=[256], count=7, seed=3).prompts["kv"][256]
    for number, new in enumerate(after):
        seed = int(np.random.SeedSequence((3, 256, number)).generate_state(1)[0])
        text = texts[number % len(texts)]
        old = retrieval_prompt(vocabulary, text, length=256, pairs=8, seed=seed)
        assert torch.equal(old.input_ids, new.input_ids)
        assert (old.answer, {*old.candidates}) == (
            int(new.answer),
            {int(choice) for choice in new.candidates},
        )
        assert new.input_ids[len(new.input_ids) - new.distance - 1] == new.answer


def test_a_task_that_does_not_fit_is_missing_and_the_others_are_asked():
    found = make_prompts(["ruler", "needle"], source(), lengths=[128, 700], count=1)
    assert {*found.prompts["needle"]} == {128, 700}
    assert {*found.prompts["niah_single_1"]} == {700}
    reason = found.not_asked["niah_single_1 in 128 tokens"]
    assert "does not fit into 128 tokens" in reason


def test_a_task_that_fits_nowhere_is_said_once():
    found = make_prompts(["vt", "needle"], source(), lengths=[90, 100], count=1)
    assert {*found.prompts} == {"needle"}
    assert [*found.not_asked] == ["vt"]
    assert found.not_asked["vt"].startswith(
        "fits into none of the lengths; vt does not fit into 100 tokens"
    )


def test_ruler_is_eleven_tasks_without_a_file_of_questions():
    assert len(expand(["ruler"], source())) == 11


def test_an_unknown_task_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"no task 'nedle'; did you mean 'needle'\?"):
        expand(["nedle"], source())


def test_a_tokenizer_that_loses_the_needle_is_refused():
    with pytest.raises(DataError, match="use the tokenizer that was saved with the model"):
        task("passkey").prompt(Source(tiny_tokenizer(), documents()), Place(256, 0, 0))


def test_bos_needs_a_tokenizer_that_has_one():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(DataError, match="no BOS token; use bos=False"):
        Source(tokenizer, documents(), bos=True)
