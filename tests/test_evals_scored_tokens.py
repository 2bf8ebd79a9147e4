"""What a stopped run keeps, what batches must not change, and which models are read."""

import math

import numpy as np
import pytest
import torch
from seq2seq_models import seq2seq_model
from test_evals_perplexity import WITH_SHORT, count_tokens_read, prefix_plan
from test_evals_protocols import DOCUMENTS, make_tokenizer
from tiny_models import tiny_model

from ropepatch.errors import ConfigError, DataError
from ropepatch.evals.perplexity import measure_perplexity
from ropepatch.evals.perplexity_plan import plan_perplexity
from ropepatch.evals.protocols import PROTOCOLS
from ropepatch.evals.scored_tokens import score_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=400)


class Stop(Exception):
    pass


class DictStore:
    """Keeps losses; `room` documents at most, then the run is killed."""

    def __init__(self, room=math.inf):
        self.room = room
        self.kept = {}

    def __len__(self):  # an empty one is a store, too
        return len(self.kept)

    def finished(self, what, document):
        return self.kept.get((what, document))

    def keep(self, what, document, losses):
        if len(self.kept) >= self.room:
            raise Stop
        self.kept[what, document] = losses


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_stopped_run_goes_on_and_reads_nothing_again(model, tokenizer, protocol, monkeypatch):
    monkeypatch.setattr("ropepatch.evals.scored_tokens.TOKENS_PER_BATCH", 1)
    stride = 5 if PROTOCOLS[protocol].stride else None
    plan = plan_perplexity(tokenizer, DOCUMENTS, protocol=protocol, lengths=(24,), stride=stride)
    expected = measure_perplexity(model, plan)
    store = DictStore(room=2)
    with pytest.raises(Stop):
        measure_perplexity(model, plan, store=store)
    assert all(losses.dtype == np.float32 for losses in store.kept.values())
    store.room = math.inf
    read = count_tokens_read(model, monkeypatch)
    shares = []
    assert measure_perplexity(model, plan, store=store, progress=shares.append) == expected
    probes = 16  # that look for the head
    windows = plan.windows[24][2]
    assert sum(read) - probes == sum(w.size - (protocol == "disjoint") for w in windows)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    read.clear()
    assert measure_perplexity(model, plan, store=store) == expected
    assert sum(read) == probes


def test_a_store_of_other_documents_is_refused(model, tokenizer):
    store = DictStore()
    options = {"protocol": "last-s", "lengths": (8,), "stride": 5}
    measure_perplexity(model, plan_perplexity(tokenizer, DOCUMENTS, **options), store=store)
    others = plan_perplexity(tokenizer, DOCUMENTS[::-1], **options)
    with pytest.raises(
        DataError, match=r"60 losses .* for document 0, of which 83 tokens are scored"
    ):
        measure_perplexity(model, others, store=store)


def test_batches_do_not_change_a_number(model, tokenizer, monkeypatch):
    plan = plan_perplexity(tokenizer, WITH_SHORT, protocol="last-s", lengths=(8, 16), stride=3)
    together = measure_perplexity(model, plan)
    monkeypatch.setattr("ropepatch.evals.scored_tokens.TOKENS_PER_BATCH", 1)
    for one, other in zip(together, measure_perplexity(model, plan), strict=True):
        assert one.loss.value == pytest.approx(other.loss.value, abs=1e-6)
        assert one.digest == other.digest


def test_encoder_decoder_models_are_refused_with_the_reason(tokenizer):
    model = seq2seq_model(vocab_size=400)
    for protocol in PROTOCOLS:
        stride = 5 if PROTOCOLS[protocol].stride else None
        plan = plan_perplexity(
            tokenizer, DOCUMENTS, protocol=protocol, lengths=(16,), stride=stride
        )
        with pytest.raises(
            ConfigError, match=r"T5\w+ is an encoder–decoder model, .* fixed targets"
        ):
            score_tokens(model, plan)


def test_tokens_that_the_model_does_not_know_are_told(tokenizer):
    with pytest.raises(DataError, match="the model knows 96 tokens"):
        measure_perplexity(tiny_model("llama"), prefix_plan(tokenizer))


@pytest.mark.parametrize("kind", ["gemma2", "gpt_neox"])
def test_models_whose_head_is_not_plain_are_measured_alike(kind, tokenizer):
    model = tiny_model(kind, vocab_size=400)
    model.get_output_embeddings().weight.data.mul_(30)
    ids = tokenizer(DOCUMENTS[0].text, add_special_tokens=False)["input_ids"]
    losses, length = [], 24
    for start in range(0, len(ids), length):
        # By hand: token t of a block from the one before the block (BOS at first) to t − 1.
        row = [tokenizer.bos_token_id, *ids]
        last = min(start + length, len(ids))
        read = torch.tensor([row[min(start, last - length) : last]])
        with torch.no_grad():
            logits = model(read).logits[0].double().log_softmax(-1)
        targets = row[start + 1 : last + 1]
        losses += (-logits[-len(targets) :][torch.arange(len(targets)), targets]).tolist()
    plan = plan_perplexity(tokenizer, DOCUMENTS[:1], protocol="disjoint", lengths=(length,))
    (result,) = measure_perplexity(model, plan)
    assert result.loss.value == pytest.approx(np.mean(losses), rel=1e-5)
