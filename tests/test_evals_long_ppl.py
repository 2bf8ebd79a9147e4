"""LongPPL against the authors' loop, and against its definition where texts outgrow the judge."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropepatch import patched
from ropepatch.corpus import standard_library
from ropepatch.errors import ConfigError, DataError
from ropepatch.evals.long_ppl import find_key_tokens, long_perplexities
from ropepatch.evals.perplexity import perplexity_difference
from ropepatch.evals.perplexity_plan import plan_perplexity
from ropepatch.evals.scored_tokens import score_tokens

CHECKPOINT = Path(__file__).parent.parent / "recipes" / "checkpoints" / "tiny-llama"
TRAINED, SHORT, STEP = 256, 32, 16


@pytest.fixture(scope="module")
def judge():
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def documents():
    return standard_library("held_out")[:3]


def plan_of(tokenizer, documents, *lengths):
    return plan_perplexity(tokenizer, documents, protocol="yarn-truncate", lengths=lengths)


def tokens_of(tokenizer, document, length):
    ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
    return torch.tensor([[tokenizer.bos_token_id, *ids[: length - 1]]])


def key_tokens_of_the_authors(judge, input_ids, trunc_len, sliding_window):
    """Places and full losses of key tokens, by find_key_token of the LongPPL repository."""
    loss_f = torch.nn.CrossEntropyLoss(reduction="none")
    with torch.no_grad():
        output_full = judge(input_ids).logits[0]
    max_len, found = input_ids.shape[1], {}
    for start in range(0, max_len - trunc_len, sliding_window):
        if start + trunc_len + sliding_window > max_len:
            sliding_window = max_len - start - trunc_len
        short = input_ids[:, start : start + trunc_len + sliding_window]
        with torch.no_grad():
            output_short = judge(short).logits[0]
        first, last = start + trunc_len, start + trunc_len + sliding_window
        loss_full = loss_f(output_full[first - 1 : last - 1], input_ids[0, first:last])
        loss_short = loss_f(output_short[trunc_len - 1 : -1], short[0, trunc_len:])
        key = torch.logical_and((loss_short - loss_full) > 2, loss_full < 2)
        found |= {first + i: loss_full[i].item() for i in key.nonzero()[:, 0].tolist()}
    return found


@pytest.mark.parametrize("length", [256, 250, 100])
def test_key_tokens_are_the_authors_where_the_judge_reads_all(judge, tokenizer, documents, length):
    plan = plan_of(tokenizer, documents, length)
    keys = find_key_tokens(judge, plan, trained_length=TRAINED, short_length=SHORT, step=STEP)
    (result,) = long_perplexities(score_tokens(judge, plan), keys)
    pooled, means, counts = [], [], []
    for document, mask in zip(documents, keys.masks, strict=True):
        expected = key_tokens_of_the_authors(
            judge, tokens_of(tokenizer, document, length), SHORT, STEP
        )
        assert (np.flatnonzero(mask) + 1).tolist() == list(expected)
        losses = list(expected.values())
        pooled += losses
        if losses:
            means.append(math.exp(np.mean(losses)))
            counts.append(len(losses))
    assert len(pooled) > 2
    assert result.scored_tokens == len(pooled)
    assert result.perplexity.value == pytest.approx(math.exp(np.mean(pooled)), rel=1e-5)
    # The authors' mean of documents, weighted by key tokens, is another number.
    by_document = np.dot(means, counts) / sum(counts)
    assert result.perplexity.value < by_document


def test_key_tokens_of_longer_texts_are_judged_within_the_trained_length(
    judge, tokenizer, documents
):
    length = 300
    plan = plan_of(tokenizer, documents[:1], length)
    keys = find_key_tokens(judge, plan, trained_length=TRAINED, short_length=SHORT, step=STEP)
    ids = tokens_of(tokenizer, documents[0], length)

    def loss(token, first):
        labels = torch.full_like(ids[:, first:], -100)
        labels[0, token - first] = ids[0, token]
        return judge(ids[:, first:], labels=labels).loss.item()

    with torch.no_grad():
        for token in range(TRAINED, length):
            # Blocks of STEP tokens, the short context's counted from its length on.
            full_start = (token - TRAINED) // STEP * STEP + STEP
            short_start = (token - SHORT) // STEP * STEP
            full, short = loss(token, full_start), loss(token, short_start)
            if abs(short - full - 2) > 1e-3 and abs(full - 2) > 1e-3:
                assert keys.masks[0][token - 1] == (short - full > 2 and full < 2), token
    assert keys.masks[0][TRAINED - 1 :].any()


def test_lengths_in_between_and_patched_models_are_scored_on_the_same_tokens(
    judge, tokenizer, documents
):
    plan = plan_of(tokenizer, documents, 128, 512)
    keys = find_key_tokens(judge, plan, trained_length=TRAINED, short_length=SHORT, step=64)
    before = long_perplexities(score_tokens(judge, plan), keys)
    with patched(judge, "yarn", factor=4):
        after = long_perplexities(score_tokens(judge, plan), keys)
    for length, one, other in zip((128, 512), before, after, strict=True):
        counts = [int(mask[: length - 1].sum()) for mask in keys.masks]
        assert [0 if each is None else each.tokens for each in one.documents] == counts
        assert one.digest == other.digest
    difference = perplexity_difference(before[1], after[1])
    assert difference.value == pytest.approx(after[1].loss.value - before[1].loss.value)
    assert difference.value < 0  # beyond what it was trained to, the judge needs the patch


def test_other_judges_are_told_apart(judge, tokenizer, documents):
    plan = plan_of(tokenizer, documents[:1], 256)
    results = []
    for short in (32, 48):
        keys = find_key_tokens(judge, plan, trained_length=TRAINED, short_length=short)
        results += long_perplexities(score_tokens(judge, plan), keys)
    with pytest.raises(DataError, match="cannot be compared"):
        perplexity_difference(*results)


def test_without_key_tokens_there_is_no_number(tokenizer, documents):
    model = tiny_model("llama", vocab_size=2048)  # knows nothing
    plan = plan_of(tokenizer, documents, 128)
    keys = find_key_tokens(model, plan, trained_length=64)
    (result,) = long_perplexities(score_tokens(model, plan), keys)
    assert result.perplexity is None
    assert result.scored_tokens == 0
    assert len(result.missing) == 3


@pytest.mark.parametrize(("short", "step"), [(256, 8), (200, 56), (0, 8)])
def test_a_short_context_has_to_be_shorter_than_the_trained_one(
    judge, tokenizer, documents, short, step
):
    plan = plan_of(tokenizer, documents, 512)
    with pytest.raises(ConfigError, match="less than the 256 tokens that the judge was trained to"):
        find_key_tokens(judge, plan, trained_length=TRAINED, short_length=short, step=step)


def test_other_protocols_are_refused(judge, tokenizer, documents):
    plan = plan_perplexity(tokenizer, documents, protocol="disjoint", lengths=(128,))
    with pytest.raises(ConfigError, match="'disjoint' does not; plan it with protocol 'yarn-trunc"):
        find_key_tokens(judge, plan, trained_length=TRAINED)
