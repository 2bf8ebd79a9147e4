"""A pilot's prompts are the first of the measurement's, and are not asked twice."""

import numpy as np
import pytest
from killed_evaluation import DOCUMENTS
from tiny_models import tiny_model

from ropepatch.corpus import train_tokenizer
from ropepatch.evals import plan_evaluation, runner
from ropepatch.evals.candidates import Candidate, measure_candidates, method_candidates
from ropepatch.evals.pilot import run_pilot
from ropepatch.evals.samples import Samples, SampleStore


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, vocab_size=420, keys=10, values=10)


@pytest.fixture(scope="module")
def base():
    return tiny_model("llama", vocab_size=420)


def plan_of(tokenizer, windows, prompts, **settings):
    sizes = {"lengths": (32, 64), "trained_length": 32, "targets": 16}
    counts = {"windows": windows, "prompts": prompts}
    return plan_evaluation(tokenizer, DOCUMENTS, **sizes, **counts, **settings)


def test_answers_of_the_pilot_are_those_of_the_measurement(base, tokenizer, tmp_path, monkeypatch):
    few, many = (plan_of(tokenizer, n, 3 * n, haystack=DOCUMENTS) for n in (2, 4))
    candidates = [Candidate("base"), *method_candidates(base, ["linear"], [2], 32)]
    anew = measure_candidates(base, candidates, many, None)
    told, asked = [], []
    pilot = run_pilot(base, candidates, few, None, lambda *each: told.append(each))
    assert {label for label, _ in told} == {"pilot: base", "pilot: linear ×2"}
    store = SampleStore(tmp_path, {"models": {}})
    monkeypatch.setattr(runner, "batches", lambda prompts: ([prompt] for prompt in prompts))
    answer = runner.answer_prompts

    def counted(model, tokenizer, batch, **settings):
        asked.extend(prompt.number for prompt in batch)
        return answer(model, tokenizer, batch, **settings)

    monkeypatch.setattr(runner, "answer_prompts", counted)
    stages = measure_candidates(
        base,
        candidates,
        many,
        None,
        samples=lambda label: pilot.hand_on(many, store.candidate(label)),
    )
    # 2 models, 2 lengths.
    assert asked == [6, 7, 8, 9, 10, 11] * 4
    for one, other in zip(stages, anew, strict=True):
        for length in (32, 64):
            scores = [each.tasks["kv"][length].scores for each in (one, other)]
            np.testing.assert_array_equal(*scores)


def test_prompts_of_another_haystack_are_asked_again(base, tokenizer):
    few, many = plan_of(tokenizer, 1, 3), plan_of(tokenizer, 4, 8)
    pilot = run_pilot(base, [Candidate("base")], few, None, lambda *each: None)
    rows = pilot.hand_on(many, Samples("base"))
    same = {p.digest for p in few.prompts["kv"][64]} & {p.digest for p in many.prompts["kv"][64]}
    assert len(same) < 3
    assert {answer.prompt for answer in rows.answers("kv", 64)} == same
