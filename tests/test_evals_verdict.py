"""Verdicts on models whose truth is known, and how often chance alone would give another."""

from dataclasses import replace

import numpy as np
import pytest
from made_evaluations import LENGTHS, YARN, made_evaluation, made_scores

from ropepatch.errors import DataError
from ropepatch.evals.verdict import extension_gain, judge

BROKEN_AT_LENGTH = {"losses": (0.0, 0.0, 0.5, 1.0), "rates": (0.9, 0.9, 0.4, 0.1)}
BASE = made_evaluation("base", **BROKEN_AT_LENGTH)


def patched(**settings):
    return made_evaluation("patched", **{"seed": 1, "patch": YARN, **settings})


def test_equal_models_are_told_apart_in_at_most_5_of_100_comparisons():
    words = []
    for seed in range(100):
        base, other = (made_evaluation(seed=2 * seed + n, documents=12, patch=YARN) for n in (0, 1))
        words.append(judge(base, other).word)
    assert words.count("no evidence") >= 95


def test_equal_models_with_few_documents_are_told_apart_as_seldom():
    words = []
    for seed in range(100):
        base, other = (
            made_evaluation(seed=2 * seed + n, documents=5, noise=0.3, patch=YARN) for n in (0, 1)
        )
        words.append(judge(base, other).word)
    assert words.count("no evidence") >= 95


def test_the_same_numbers_are_never_told_apart():
    for seed in range(10):
        base = made_evaluation(seed=seed, **BROKEN_AT_LENGTH)
        assert judge(base, replace(base, label="again")).word == "no evidence"


def test_a_base_that_reads_on_by_itself_is_not_improved_by_a_patch_that_does_nothing():
    reads_on = {"losses": (0.1, 0.0, -0.1, -0.2)}
    words = [
        judge(made_evaluation(seed=n, **reads_on), patched(seed=100 + n, **reads_on)).word
        for n in range(10)
    ]
    assert words.count("no evidence") >= 9


def test_a_longer_context_that_helps_at_a_small_price_is_an_improvement():
    verdict = judge(BASE, patched(losses=(0.01, 0.01, -0.05, -0.1), noise=0.01))
    assert verdict.word == "improved"
    loss = "better: loss of the same tokens in 1024 against the base's in 256: −0.1"
    assert verdict.reasons[0].startswith(loss)
    assert any(reason.startswith("better: retrieval in") for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"losses": (0.0, 0.2, 0.0, 0.0)}, "worse: loss within the trained 256 tokens: +0."),
        ({"losses": (0.0, 0.0, 0.9, 1.6)}, "worse: loss of the same tokens in 1024: +0."),
        ({"rates": (0.9, 0.4, 0.9, 0.9)}, "worse: retrieval in 256 tokens: −0."),
    ],
)
def test_harm_is_a_regression_whatever_is_gained(settings, reason):
    verdict = judge(BASE, patched(**{"losses": (0.0, 0.0, -0.1, -0.2), **settings}))
    assert verdict.word == "regressed"
    assert any(said.startswith(reason) for said in verdict.reasons)


def test_gains_are_said_beside_the_harm():
    verdict = judge(BASE, patched(losses=(0.3, 0.3, -0.1, -0.2)))
    assert verdict.reasons[0].startswith("worse: loss")
    assert any(reason.startswith("better: loss") for reason in verdict.reasons)


def test_a_price_below_the_tolerance_is_no_harm():
    # 0.02 nats in every window: far from chance, and less than the 0.03 that count as kept.
    base = made_evaluation(noise=0.0)
    verdict = judge(base, made_evaluation(losses=(0.02,) * 4, noise=0.0, patch=YARN))
    assert verdict.price.value == pytest.approx(0.02, abs=1e-5)
    assert verdict.word == "no evidence"


def test_retrieval_alone_is_an_improvement():
    base = made_evaluation("base", rates=(0.9, 0.9, 0.2, 0.1))
    verdict = judge(base, replace(base, label="patched", tasks=patched().tasks))
    assert verdict.word == "improved"


def test_an_improvement_says_what_it_costs():
    base = made_evaluation("base", noise=0.001, **BROKEN_AT_LENGTH)
    verdict = judge(base, patched(losses=(0.02, 0.02, 0.02, 0.02), noise=0.001))
    assert verdict.word == "improved"
    costs = [reason for reason in verdict.reasons if reason.startswith("cost: ")]
    assert costs[0].startswith("cost: loss within the trained 256 tokens: +0.0")
    assert costs[-1].startswith(
        "cost: loss of the same tokens in 1024 against the base's in 256: +0.0"
    )


def test_values_found_in_text_that_is_not_read_any_more_are_no_improvement():
    # As NTK ×4 on tiny-llama: below the base at 1024, and a nat above what the base had in 256.
    base = made_evaluation("base", noise=0.001, **BROKEN_AT_LENGTH)
    verdict = judge(base, patched(losses=(0.0, 0.0, 0.0, 0.9), noise=0.001))
    assert verdict.word == "no evidence"
    assert verdict.reasons[0].startswith(
        "not counted, as the loss is too high: retrieval in 1024 tokens: +0."
    )
    assert verdict.reasons[-1].startswith(
        "cost: loss of the same tokens in 1024 against the base's in 256: +0.89"
    )


def test_a_model_that_says_no_length_is_improved_up_to_where_its_loss_holds():
    verdict = judge(BASE, patched(losses=(0.0, 0.0, 0.0, 0.9), noise=0.01, patch=None))
    assert verdict.word == "improved"
    assert verdict.reasons[0].startswith("better: retrieval in 512 tokens: +0.")
    assert verdict.reasons[1].startswith(
        "not counted, as the loss is too high: retrieval in 1024 tokens: +0."
    )


@pytest.mark.parametrize(("loss", "word"), [(0.02, "improved"), (0.05, "no evidence")])
def test_a_loss_up_to_the_tolerance_contradicts_no_gain(loss, word):
    # Of one document there is no interval, and the loss itself decides.
    for documents in (1, 20):
        base = made_evaluation("base", documents=documents, noise=0.0, **BROKEN_AT_LENGTH)
        after = patched(losses=(0.0, 0.0, loss, loss), documents=documents, noise=0.0)
        assert judge(base, after).word == word


def test_a_score_that_rises_up_to_chance_is_no_improvement():
    base = made_evaluation("base", rates=(0.9, 0.9, 0.0, 0.0))
    after = {**base.tasks["kv"], 1024: made_scores(np.arange(64) % 8 == 0, 1024)}
    assert judge(base, replace(base, tasks={"kv": after})).word == "no evidence"


def test_lengths_that_the_patch_is_not_made_for_are_no_gain():
    short = {**YARN, "max_position_embeddings": 512}
    better = {"losses": (0.0, 0.0, 0.5, -0.3), "rates": BROKEN_AT_LENGTH["rates"]}
    assert judge(BASE, patched(patch=short, **better)).word == "no evidence"
    assert judge(BASE, patched(**better)).word == "improved"


def test_extension_gain_is_against_what_the_user_had():
    after = patched(losses=(0.0, 0.0, -0.1, -0.2), noise=0.0)
    base = made_evaluation("base", losses=(0.0, 0.05, 0.5, 1.0), noise=0.0)
    assert extension_gain(base, after, 1024).value == pytest.approx(-0.25, abs=1e-5)
    assert set(judge(base, after).gains) == {512, 1024}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_model_that_gives_no_numbers_is_regressed(broken):
    losses = {length: np.full((40, 8), broken, np.float32) for length in LENGTHS}
    positions = np.full((40, 1023), broken, np.float32)
    after = patched()
    after = replace(after, target_losses=losses, position_losses=positions)
    verdict = judge(BASE, after)
    assert verdict.word == "regressed"
    assert "not finite" in verdict.reasons[0]


def test_a_model_without_numbers_is_regressed_however_few_the_windows():
    few = {"documents": 2, "prompts": 2}
    before, after = made_evaluation(**few), made_evaluation(**few)
    losses = {length: np.full_like(each, np.inf) for length, each in after.target_losses.items()}
    verdict = judge(before, replace(after, target_losses=losses))
    assert verdict.word == "regressed"
    assert "losses in" in verdict.reasons[0]
    assert "not finite" in verdict.reasons[0]


def test_too_few_documents_to_show_anything_are_said():
    base = made_evaluation(documents=4, prompts=8)
    verdict = judge(base, made_evaluation(seed=1, losses=(1.0,) * 4, documents=4, prompts=8))
    assert verdict.word == "no evidence"
    assert any("4 documents cannot show a difference" in reason for reason in verdict.reasons)


def test_other_prompts_or_windows_are_refused():
    with pytest.raises(DataError, match="not measured on the same windows"):
        judge(BASE, patched(protocol="other"))
