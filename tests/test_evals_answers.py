"""Scores of models whose answers are known, and of real ones against whole passes in float64."""

import json
from dataclasses import asdict, replace
from functools import cache
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from task_sources import CHECKPOINTS, byte_level, source
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, GPT2LMHeadModel

from ropepatch import patched
from ropepatch.errors import ConfigError, DataError, LengthError
from ropepatch.evals.answers import (
    Answer,
    answer_prompts,
    string_match_all,
    string_match_part,
    task_scores,
)
from ropepatch.evals.likelihoods import log_likelihoods
from ropepatch.evals.statistics import wilson
from ropepatch.evals.tasks import make_prompts

VOCABULARY = 2048
MODES = ("forced_choice", "teacher_forced", "generate")


@cache
def prompts(name="needle", length=256, count=11):
    return make_prompts([name], source(), lengths=[length], count=count).prompts[name][length]


@cache
def bundled(name="tiny-llama"):
    kind = AutoModelForSeq2SeqLM if name == "tiny-t5" else AutoModelForCausalLM
    return kind.from_pretrained(CHECKPOINTS / name, dtype=torch.float32).eval()


class Copier(nn.Module):
    """Goes on as the text did where it last had the longest end in common, `window` tokens back at most."""

    config = SimpleNamespace(is_encoder_decoder=False)
    generation_config = SimpleNamespace(eos_token_id=None)
    device = torch.device("cpu")

    def __init__(self, window=10**6):
        super().__init__()
        self.window = window

    def next(self, ids):
        ids = ids[-self.window :]
        ends = [size for size in range(24, 0, -1) if len(ids) > size]
        for size in ends:
            for start in range(len(ids) - size - 1, -1, -1):
                if ids[start : start + size] == ids[-size:]:
                    return ids[start + size]
        return 0

    def logits(self, ids):
        return 9.0 * nn.functional.one_hot(torch.tensor(self.next(ids)), VOCABULARY).float()

    def forward(self, input_ids, *, past_key_values=None, use_cache=False, logits_to_keep=0):
        before = [[] for _ in input_ids] if past_key_values is None else past_key_values
        rows = [[*past, *new] for past, new in zip(before, input_ids.tolist(), strict=True)]
        kept = logits_to_keep or input_ids.shape[1]
        logits = [
            torch.stack([self.logits(row[: len(row) - back]) for back in reversed(range(kept))])
            for row in rows
        ]
        return SimpleNamespace(logits=torch.stack(logits), past_key_values=rows)

    def generate(self, *, input_ids, attention_mask, generation_config):
        rows = input_ids.tolist()
        for _ in range(generation_config.max_new_tokens):
            rows = [[*row, int(self.logits(row).argmax())] for row in rows]
        return torch.tensor(rows)


class Guesser(Copier):
    """Rates all tokens at random."""

    def logits(self, ids):
        return torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(hash(tuple(ids))))


def score_prompts(model, tokenizer, asked, mode="forced_choice"):
    batches = answer_prompts(model, tokenizer, asked, mode=mode)
    answers = sorted(chain.from_iterable(batches), key=lambda answer: answer.number)
    return task_scores(asked, answers, mode), answers


def scored(model, asked, mode="forced_choice"):
    return score_prompts(model, byte_level(), asked, mode=mode)[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_copies_is_always_right(mode):
    scores = scored(Copier(), prompts(), mode)
    assert scores.scores.tolist() == [1.0] * 11
    assert scores.chance == (1 / 8 if mode == "forced_choice" else 0)


def test_a_model_without_a_cache_reads_the_context_with_every_choice():
    class Stateless(Copier):
        def forward(self, *args, **kwargs):
            return SimpleNamespace(logits=super().forward(*args, **kwargs).logits)

    assert scored(Stateless(), prompts()[:3]).scores.tolist() == [1.0] * 3


def test_a_model_that_copies_gains_from_the_needle_and_only_from_it():
    scores = scored(Copier(), prompts())
    assert (scores.gains > 3).all()
    near = scored(Copier(window=20), prompts())  # sees the question alone
    np.testing.assert_allclose(near.gains[near.distances > 20], 0, atol=1e-6)


def test_a_window_that_does_not_reach_the_needle_is_no_better_than_chance():
    scores = scored(Copier(window=60), prompts(length=512, count=66))
    far = scores.distances > 90
    interval = wilson(int(scores.scores[far].sum()), int(far.sum()))
    assert interval.low <= scores.chance
    assert scores.scores[scores.distances < 30].mean() == 1


def test_a_model_that_guesses_is_at_chance():
    scores = scored(Guesser(), prompts("niah_multikey_1", 300, 200))
    interval = wilson(int(scores.scores.sum()), 200)
    assert interval.low <= 1 / 4 <= interval.high
    assert scores.chance == pytest.approx(1 / 4)
    assert scored(Guesser(), prompts(), "teacher_forced").scores.sum() == 0


def test_a_model_without_preference_is_never_right():
    class Indifferent(Copier):
        def logits(self, ids):
            return torch.zeros(VOCABULARY)

    assert scored(Indifferent(), prompts()).scores.sum() == 0


def whole_pass(model, context, answer):
    """Log-probabilities of the answer's tokens from one pass in float64, and the likeliest tokens."""
    if model.config.is_encoder_decoder:
        start = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1].tolist()]])
        logits = model(input_ids=context[None], decoder_input_ids=start).logits[0]
    else:
        logits = model(torch.cat([context, answer])[None]).logits[0, len(context) - 1 : -1]
    return logits.log_softmax(-1)[range(len(answer)), answer], logits.argmax(-1)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-bloom", "tiny-t5"])
@torch.no_grad()
def test_choices_losses_and_gains_are_those_of_whole_passes_in_float64(name):
    asked = prompts(count=3)
    _, answers = score_prompts(bundled(name), byte_level(), asked)
    exact = AutoModelForSeq2SeqLM if name == "tiny-t5" else AutoModelForCausalLM
    exact = exact.from_pretrained(CHECKPOINTS / name, dtype=torch.float64).eval()
    for prompt, answer in zip(asked, answers, strict=True):
        totals = [whole_pass(exact, prompt.input_ids, c)[0].sum() for c in prompt.candidates]
        best = max(range(8), key=lambda number: totals[number])
        assert answer.score == float(best == 0)
        assert answer.response == byte_level().decode(prompt.candidates[best])
        loss = -totals[0] / len(prompt.answer)
        without = -whole_pass(exact, prompt.without, prompt.answer)[0].mean()
        assert answer.loss == pytest.approx(float(loss), abs=2e-4)
        assert answer.gain == pytest.approx(float(without - loss), abs=2e-4)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-neox", "tiny-bloom", "tiny-t5"])
@torch.no_grad()
def test_every_choice_goes_on_from_the_context_alone(name):
    model, (prompt, *_) = bundled(name), prompts(count=5)
    choices = torch.stack(prompt.candidates)[None]
    likelihoods = log_likelihoods(model, prompt.input_ids[None], choices)[0]
    for choice, likelihood in zip(prompt.candidates, likelihoods, strict=True):
        whole = whole_pass(model, prompt.input_ids, choice)[0].sum()
        assert float(likelihood) == pytest.approx(float(whole), abs=2e-3)


@pytest.mark.parametrize("method", ["dynamic_ntk", "yarn"])
@torch.no_grad()
def test_a_patch_scales_choices_as_it_scales_one_pass_over_them(method):
    asked = prompts(length=512, count=2)
    with patched(bundled(), method, 4) as model:
        _, answers = score_prompts(model, byte_level(), asked)
        for prompt, answer in zip(asked, answers, strict=True):
            # The answer's last token is read by nobody, so it is no part of the length.
            row = torch.cat([prompt.input_ids, prompt.answer[:-1]])[None]
            logits = model(row, use_cache=False).logits[0, len(prompt.input_ids) - 1 :]
            same = -logits.log_softmax(-1)[range(len(prompt.answer)), prompt.answer].mean()
            assert answer.loss == pytest.approx(float(same), abs=1e-4)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_teacher_forcing_is_right_where_greedy_generation_says_the_answer(name):
    """Answers are replaced by what the model itself says, and by the same with another last token."""
    model, own, other = bundled(name), [], []
    for prompt in prompts(count=4):
        size = len(prompt.answer)
        made = model.generate(
            input_ids=prompt.input_ids[None], max_new_tokens=size, do_sample=False
        )[0, -size:]
        own.append(replace(prompt, answer=made))
        other.append(replace(prompt, answer=torch.cat([made[:-1], (made[-1:] + 1) % VOCABULARY])))
    assert scored(model, own, "teacher_forced").scores.tolist() == [1] * 4
    assert scored(model, other, "teacher_forced").scores.tolist() == [0] * 4


def test_generation_goes_on_greedily_and_ends_with_the_text():
    model, prompt = bundled(), prompts(count=1)[0]
    ids = prompt.input_ids[None]
    for _ in range(prompt.max_new_tokens):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    said = ids[0, len(prompt.input_ids) :]
    (answer,) = score_prompts(model, byte_level(), [prompt], mode="generate")[1]
    assert answer.response == byte_level().decode(said)
    before = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = int(said[2])
        (answer,) = score_prompts(model, byte_level(), [prompt], mode="generate")[1]
    finally:
        model.generation_config.eos_token_id = before
    end = said.tolist().index(int(said[2]))
    assert answer.response == byte_level().decode(said[:end])


def test_all_references_count_their_share_and_of_questions_one_is_enough():
    said = "The words are Apple, pear; and 42."
    assert string_match_all(said, ["apple", "PEAR", "43", "plum"]) == 0.5
    assert string_match_all(said, ["apple"]) == 1
    assert string_match_part(said, ["plum", "pear"]) == 1
    assert string_match_part(said, ["plum", "43"]) == 0


@pytest.mark.parametrize("mode", MODES)
def test_key_values_are_found_by_the_model_that_learned_them(mode):
    scores = scored(bundled(), prompts("kv", 256, 16), mode)
    assert scores.scores.mean() > 0.9


def test_encoder_decoder_models_answer_needles_and_keys():
    assert scored(bundled("tiny-t5"), prompts("kv", 256, 4)).scores.shape == (4,)


def test_a_model_without_positions_for_a_length_is_refused_in_any_case():
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=16, n_layer=1, n_head=2)
    ).eval()
    with pytest.raises(LengthError, match="the model has no positions for 256 tokens"):
        scored(model, prompts(count=1))


def test_prompts_without_wrong_answers_are_no_choice():
    bare = [replace(prompt, candidates=()) for prompt in prompts(count=2)]
    with pytest.raises(
        ConfigError, match=r"needle has no wrong answers .* use generate or teacher_forced"
    ):
        scored(Copier(), bare)


def test_scores_are_made_again_from_stored_answers_in_any_order():
    asked = prompts()
    scores, answers = score_prompts(Copier(), byte_level(), asked)
    stored = [Answer(**json.loads(json.dumps(asdict(answer)))) for answer in reversed(answers)]
    again = task_scores(asked, stored, "forced_choice")
    for name in ("scores", "gains", "depths", "distances"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scores, name))
    assert (again.chance, again.digest) == (scores.chance, scores.digest)


@pytest.mark.parametrize("spoil", ["missing", "another prompt", "another mode"])
def test_answers_to_other_prompts_are_refused(spoil):
    asked = prompts()
    answers = score_prompts(Copier(), byte_level(), asked)[1]
    changed = {"another prompt": {"prompt": "0"}, "another mode": {"mode": "generate"}}
    first = [] if spoil == "missing" else [replace(answers[0], **changed[spoil])]
    with pytest.raises(DataError, match=r"prompts numbered \[0\] have none by forced_choice"):
        task_scores(asked, [*first, *answers[1:]], "forced_choice")


def test_every_prompt_is_answered_once_whatever_its_shape():
    asked = prompts("cwe", 1300, 6)
    assert len({len(prompt.input_ids) for prompt in asked}) > 1
    batches = list(answer_prompts(Guesser(), byte_level(), asked))
    assert sorted(answer.number for batch in batches for answer in batch) == [*range(6)]
