"""Whole evaluations of tiny models: what is paired, what is the same, what is refused."""

import re

import numpy as np
import pytest
import torch
from seq2seq_models import seq2seq_model
from tiny_models import tiny_model

from ropepatch import patch_model, patched
from ropepatch.corpus import Document, train_tokenizer
from ropepatch.errors import ConfigError, DataError
from ropepatch.evals import compare, measure, plan_evaluation
from ropepatch.evals.windows import held_out_windows

OPTIONS = {
    "lengths": (32, 64, 128),
    "trained_length": 32,
    "targets": 16,
    "windows": 6,
    "prompts": 8,
}


def prose(name, words, seed):
    rng = np.random.default_rng(seed)
    vocabulary = ["def", "return", "self", "value", "import", "length", "for", "in", "if", "else"]
    return Document(name, " ".join(rng.choice(vocabulary, size=words)))


DOCUMENTS = [prose(f"doc{number}", 250, number) for number in range(4)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, vocab_size=420, keys=10, values=10)


def fresh_model():
    return tiny_model("llama", vocab_size=420)


def run(model, tokenizer, *, label="stage", progress=None, **changes):
    plan = plan_evaluation(tokenizer, DOCUMENTS, **{**OPTIONS, **changes})
    return measure(model, plan, label, progress)


@pytest.fixture(scope="module")
def unpatched(tokenizer):
    return run(fresh_model(), tokenizer, label="unpatched")


@pytest.fixture(scope="module")
def scaled(tokenizer):
    model = patch_model(fresh_model(), "yarn", factor=4)
    return run(model, tokenizer, label="yarn")


def test_target_losses_equal_the_models_own_at_every_length(unpatched, tokenizer):
    windows = held_out_windows(DOCUMENTS, tokenizer, longest=128, count=6, targets=16)
    model = fresh_model()
    for length in (32, 64, 128):
        ids = windows.suffix(length)
        labels = ids.clone()
        labels[:, :-16] = -100
        with torch.no_grad():
            theirs = model(input_ids=ids, labels=labels).loss.item()
        assert unpatched.target_loss(length).value == pytest.approx(theirs, abs=1e-5)


def test_prompts_can_have_fewer_lengths_than_windows(unpatched, tokenizer):
    few = run(fresh_model(), tokenizer, label="few", prompt_lengths=(64,))
    assert set(few.tasks["kv"]) == {64}
    assert np.array_equal(few.tasks["kv"][64].scores, unpatched.tasks["kv"][64].scores)
    assert set(few.target_losses) == {32, 64, 128}
    assert few.protocol != unpatched.protocol


def test_same_model_twice_differs_by_exactly_zero(unpatched, tokenizer):
    again = compare(unpatched, run(fresh_model(), tokenizer, label="again"))
    differences = [*again.target_losses.values(), *again.bin_losses.values(), again.within_trained]
    for interval in [*differences, *again.tasks["kv"].values()]:
        assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_a_difference_is_that_of_the_two_losses(unpatched, scaled):
    comparison = compare(unpatched, scaled)
    for length in unpatched.lengths:
        difference = scaled.target_loss(length).value - unpatched.target_loss(length).value
        assert comparison.target_losses[length].value == pytest.approx(difference)
        assert comparison.target_losses[length].value != 0


def test_gain_is_the_loss_minus_that_at_the_trained_length(unpatched):
    gain = unpatched.context_gain(128)
    difference = unpatched.target_loss(128).value - unpatched.target_loss(32).value
    assert gain.value == pytest.approx(difference)
    assert unpatched.context_gain(32).high == 0.0


def test_bins_together_hold_every_token(unpatched):
    sizes = [end - first for first, end in unpatched.bins]
    means = [unpatched.bin_loss(positions).value for positions in unpatched.bins]
    whole = float(unpatched.position_losses.mean(dtype=np.float64))
    assert sum(sizes) == unpatched.position_losses.shape[1] == 127
    assert np.average(means, weights=sizes) == pytest.approx(whole)


def test_position_bins_of_a_static_method_come_from_one_pass(scaled):
    assert scaled.configuration["position_bins"] == "one pass"


def test_length_dependent_method_is_run_per_bin(tokenizer):
    model = fresh_model()
    with patched(model, "dynamic_ntk", factor=4):
        evaluation = run(model, tokenizer, prompts=0)
    assert evaluation.configuration["position_bins"] == "one run per bin"
    # Rows within the trained length are not scaled at all, so early bins equal the unpatched ones.
    within = evaluation.position_losses[:, :31]
    expected = run(model, tokenizer, prompts=0).position_losses[:, :31]
    np.testing.assert_allclose(within, expected, rtol=1e-5, atol=1e-5)


def test_configuration_names_the_patch_that_is_live(unpatched, scaled):
    assert unpatched.configuration["patch"] is None
    found = [each.configuration["positions"] for each in (unpatched, scaled)]
    assert all(re.fullmatch("[0-9a-f]{8}", each) for each in found)
    assert len(set(found)) == 2
    patch = scaled.configuration["patch"]
    assert (patch["method"], patch["options"]["factor"]) == ("yarn", 4.0)
    assert scaled.extended_length == 128
    assert scaled.reference_length == 32


def test_model_is_left_in_the_mode_in_which_it_was(tokenizer):
    model = fresh_model().train()
    model.model.layers[0].eval()
    run(model, tokenizer, prompts=0)
    assert model.training
    assert not model.model.layers[0].training
    assert model.model.layers[1].training


def test_a_model_can_be_trained_after_it_was_evaluated(tokenizer):
    model = patch_model(fresh_model(), "yarn", factor=4)
    run(model, tokenizer, prompts=0)
    ids = torch.arange(3, 43)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad is not None


def test_progress_rises_to_one(tokenizer):
    shares = []
    run(fresh_model(), tokenizer, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[0] < 0.5


def test_retrieval_is_missing_without_reserved_tokens(tokenizer):
    plain = train_tokenizer(DOCUMENTS, vocab_size=400, keys=0, values=0)
    evaluation = run(fresh_model(), plain)
    assert evaluation.tasks == {}
    assert evaluation.score("kv", 64) is None
    assert evaluation.chance("kv") is None
    assert "reserves 0 keys" in evaluation.configuration["not_asked"]["kv"]


def test_far_retrieval_counts_keys_beyond_the_trained_length_only(scaled):
    asked = scaled.tasks["kv"][128]
    far = asked.distances >= 32
    assert scaled.score("kv", 128, beyond=32).value == asked.scores[far].mean()
    assert scaled.score("kv", 32, beyond=32) is None


def test_different_windows_are_not_compared(unpatched, tokenizer):
    other = run(fresh_model(), tokenizer, windows=5, prompts=0)
    with pytest.raises(DataError, match="not measured on the same windows and prompts"):
        compare(unpatched, other)


def test_tokenizer_of_another_model_is_refused(tokenizer):
    with pytest.raises(DataError, match="the model knows 96 tokens"):
        run(tiny_model("llama"), tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "distinct and ascending"),
        ({"lengths": (64, 32)}, "distinct and ascending"),
        ({"targets": 32}, "no context left"),
        ({"windows": 0}, "at least 1"),
        ({"pairs": 20}, "pairs=20"),
    ],
)
def test_settings_that_measure_nothing_are_refused(tokenizer, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(fresh_model(), tokenizer, **changes)


def test_an_encoder_decoder_model_is_measured_on_the_same_targets_and_prompts(tokenizer):
    model = seq2seq_model(vocab_size=420)
    evaluation = run(model, tokenizer)
    windows = held_out_windows(DOCUMENTS, tokenizer, longest=128, count=6, targets=16)
    for length in (32, 64, 128):
        ids = windows.suffix(length)
        with torch.no_grad():
            theirs = model(input_ids=ids[:, :-16], labels=ids[:, -16:].contiguous()).loss.item()
        assert evaluation.target_loss(length).value == pytest.approx(theirs, abs=1e-5)
    assert set(evaluation.tasks["kv"]) == {32, 64, 128}
    assert evaluation.configuration["position_bins"] == "one run per 16 tokens"
