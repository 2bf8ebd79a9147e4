"""One pass or several, what is missing, and what may be compared."""

import json
import math

import numpy as np
import pytest
import torch
from test_evals_protocols import DOCUMENTS, make_tokenizer
from tiny_models import tiny_model

from ropepatch import patched
from ropepatch.corpus import Document
from ropepatch.errors import DataError
from ropepatch.evals.perplexity import measure_perplexity, perplexity_difference
from ropepatch.evals.perplexity_plan import plan_perplexity
from ropepatch.evals.protocols import PROTOCOLS

LENGTHS = (8, 16, 40)  # doc0 has 60 tokens, doc1 45, doc2 83
WITH_SHORT = [*DOCUMENTS, Document("short", "for if in else return import for in if def")]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=400)


def prefix_plan(tokenizer, lengths=LENGTHS, documents=DOCUMENTS):
    return plan_perplexity(tokenizer, documents, protocol="yarn-truncate", lengths=lengths)


def count_tokens_read(model, monkeypatch):
    read = []
    forward = model.model.forward

    def spy(*args, input_ids=None, **kwargs):
        read.append(input_ids.numel())
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model.model, "forward", spy)
    return read


@pytest.mark.parametrize("method", [None, "linear", "yarn", "llama3"])
def test_one_pass_equals_a_pass_for_each_length(model, tokenizer, method):
    def measure():
        together = measure_perplexity(model, prefix_plan(tokenizer))
        alone = [measure_perplexity(model, prefix_plan(tokenizer, (n,)))[0] for n in LENGTHS]
        assert together[0].one_pass
        for one, other in zip(together[:3], alone, strict=True):
            assert one.loss.value == pytest.approx(other.loss.value, abs=1e-5)
            assert one.scored_tokens == other.scored_tokens

    if method is None:
        measure()
    else:
        with patched(model, method, factor=4):
            measure()


def test_one_pass_reads_every_token_once(model, tokenizer, monkeypatch):
    read = count_tokens_read(model, monkeypatch)
    measure_perplexity(model, prefix_plan(tokenizer))
    # The head is looked for, and a window's half and first 8 tokens are tried alone.
    assert sum(read) == 16 + 20 + 8 + 3 * 40


def test_dynamic_methods_get_a_pass_for_each_length(model, tokenizer, monkeypatch):
    with patched(model, "dynamic_ntk", factor=4):
        together = measure_perplexity(model, prefix_plan(tokenizer))
        alone = [measure_perplexity(model, prefix_plan(tokenizer, (n,)))[0] for n in LENGTHS]
    assert not together[0].one_pass
    for one, other in zip(together[:3], alone, strict=True):
        assert one.loss.value == pytest.approx(other.loss.value, abs=1e-6)


def test_methods_that_say_that_they_depend_on_the_length_are_not_tried(model, tokenizer):
    # Within the trained length a trial would see no difference, and none that is small elsewhere.
    with patched(model, "dynamic_ntk", factor=4):
        assert not measure_perplexity(model, prefix_plan(tokenizer, (8, 16)))[0].one_pass


@pytest.mark.parametrize("factor", [20.0, 4.0])
def test_frequencies_that_jump_below_half_of_the_window_are_noticed(tokenizer, factor):
    # transformers' own longrope: other factors as soon as a sequence is longer than 12 tokens. A
    # window of 40 and its half agree; only the shortest length shows it.
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0] * 8,
        "long_factor": [factor] * 8,
        "original_max_position_embeddings": 12,
    }
    model = tiny_model("llama", vocab_size=400, rope_parameters=rope, max_position_embeddings=96)
    plan = prefix_plan(tokenizer)
    together = measure_perplexity(model, plan)
    (alone,) = measure_perplexity(model, prefix_plan(tokenizer, (8,)))
    assert not together[0].one_pass
    assert together[0].loss.value == pytest.approx(alone.loss.value, abs=1e-6)


def test_losses_between_two_lengths_follow_from_the_means_by_hand(model, tokenizer):
    results = measure_perplexity(model, prefix_plan(tokenizer))
    short, middle, long, first, second = results
    assert (first.after, first.length, second.after, second.length) == (8, 16, 16, 40)
    # Losses of BOS and n − 1 tokens are those of n − 1 tokens added up.
    by_hand = (39 * long.loss.value - 15 * middle.loss.value) / 24
    assert second.loss.value == pytest.approx(by_hand, abs=1e-6)
    assert second.scored_tokens == 3 * 24
    assert second.mean_context == (16 + 39) / 2
    assert first.loss.value == pytest.approx(
        (15 * middle.loss.value - 7 * short.loss.value) / 8, abs=1e-6
    )


def test_a_dynamic_methods_loss_between_lengths_is_of_the_longer_pass(model, tokenizer):
    with patched(model, "dynamic_ntk", factor=4):
        results = measure_perplexity(model, prefix_plan(tokenizer))
        losses = []
        for ids in tokenizer([d.text for d in DOCUMENTS], add_special_tokens=False)["input_ids"]:
            window = torch.tensor([[tokenizer.bos_token_id, *ids[:39]]])
            labels = window.clone()
            labels[:, :16] = -100
            with torch.no_grad():
                losses.append(model(window, labels=labels, use_cache=False).loss.item())
    assert results[-1].loss.value == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS.keys() - {"longlora"}))
def test_documents_too_short_for_a_length_are_missing_there_and_no_numbers(
    model, tokenizer, protocol
):
    stride = 5 if PROTOCOLS[protocol].stride else None
    lengths = (8, 50, 200)
    plan = plan_perplexity(tokenizer, WITH_SHORT, protocol=protocol, lengths=lengths, stride=stride)
    short, middle, none = measure_perplexity(model, plan)[:3]
    assert short.missing == ()
    assert middle.missing == ("doc1", "short")
    assert [one is None for one in middle.documents] == [False, True, False, True]
    assert none.loss is none.perplexity is none.bits_per_byte is none.mean_context is None
    shown = json.loads(json.dumps([middle.as_json(), none.as_json()], allow_nan=False))
    assert shown[0]["documents"] == 2
    assert shown[0]["document_losses"][1] is None
    assert shown[1]["loss"] is None
    assert shown[1]["scored_tokens"] == 0
    assert shown[1]["missing"] == [document.name for document in WITH_SHORT]


def test_other_documents_do_not_change_for_a_short_one(model, tokenizer):
    with_it = measure_perplexity(model, prefix_plan(tokenizer, documents=WITH_SHORT))
    without = measure_perplexity(model, prefix_plan(tokenizer))
    assert with_it[2].loss.value == pytest.approx(without[2].loss.value, abs=1e-6)


def test_json_of_one_document_has_a_value_and_no_interval(model, tokenizer):
    (result,) = measure_perplexity(model, prefix_plan(tokenizer, (8,), DOCUMENTS[:1]))
    shown = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert shown["loss"]["value"] == result.loss.value
    assert shown["loss"]["low"] is None


def test_interval_is_over_documents(model, tokenizer):
    (result,) = measure_perplexity(model, prefix_plan(tokenizer, (40,)))
    losses = [one.total for one in result.documents]
    # Three documents of equal weight: some resample holds each of them three times.
    assert result.loss.low == pytest.approx(min(losses))
    assert result.loss.high == pytest.approx(max(losses))
    assert result.perplexity.high == pytest.approx(math.exp(max(losses)))


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "yarn-sliding"},
        {"stride": 4},
        {"lengths": (17,)},
        {"documents": DOCUMENTS[:2]},
        {"documents": [*DOCUMENTS[:2], Document("doc2", DOCUMENTS[2].text[1:])]},
        {"tokenizer": make_tokenizer(bos=False)},
    ],
)
def test_results_of_other_protocols_or_texts_are_not_compared(model, tokenizer, other):
    options = {"tokenizer": tokenizer, "documents": DOCUMENTS, "protocol": "last-s", "stride": 3}
    first, second = (
        measure_perplexity(model, plan_perplexity(**{**options, "lengths": (16,), **changes}))[0]
        for changes in ({}, other)
    )
    with pytest.raises(DataError, match="cannot be compared; measure both by one protocol"):
        perplexity_difference(first, second)


def test_marginal_and_whole_prefix_are_not_compared(model, tokenizer):
    results = measure_perplexity(model, prefix_plan(tokenizer))
    with pytest.raises(DataError, match="'yarn-truncate' at 40 tokens after 16"):
        perplexity_difference(results[2], results[4])


def test_difference_is_paired_by_document(model, tokenizer):
    plan = prefix_plan(tokenizer, (40,), WITH_SHORT)
    (before,) = measure_perplexity(model, plan)
    with patched(model, "linear", factor=4):
        (after,) = measure_perplexity(model, plan)
    difference = perplexity_difference(before, after)
    changes = [
        second.total - first.total
        for first, second in zip(before.documents, after.documents, strict=True)
        if first is not None
    ]
    assert len(changes) == 3
    assert difference.value == pytest.approx(np.mean(changes))
    assert (difference.low, difference.high) == pytest.approx((min(changes), max(changes)))
    assert perplexity_difference(before, before).high == 0.0
