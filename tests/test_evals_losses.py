"""Losses against the model's own, and the windows that they are measured on."""

import numpy as np
import pytest
import torch
from seq2seq_models import seq2seq_model
from tiny_models import tiny_model

from ropepatch import patched
from ropepatch.corpus import Document, train_tokenizer
from ropepatch.errors import DataError
from ropepatch.evals.losses import (
    batched_losses,
    bin_edges,
    one_pass_is_exact,
    plain_head,
    position_losses,
    run_ends,
    token_losses,
)
from ropepatch.evals.windows import held_out_windows, plain_tokens

LENGTHS = (32, 64, 128)


def prose(name, words, seed):
    rng = np.random.default_rng(seed)
    vocabulary = ["def", "return", "self", "value", "import", "length", "for", "in", "if", "else"]
    return Document(name, " ".join(rng.choice(vocabulary, size=words)))


DOCUMENTS = [prose(f"doc{number}", 150 + 100 * number, number) for number in range(4)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, vocab_size=400, keys=8, values=8)


@pytest.fixture(scope="module")
def windows(tokenizer):
    return held_out_windows(DOCUMENTS, tokenizer, longest=128, count=6, targets=16)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=400)


@pytest.fixture(scope="module")
def seq2seq():
    return seq2seq_model(vocab_size=400)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma2", "cohere", "granite"])
def test_every_token_loss_equals_the_models_own(kind):
    model = tiny_model(kind)
    # Larger weights than at initialisation, so that capped logits differ from plain ones.
    model.get_output_embeddings().weight.data.mul_(30)
    ids = torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = token_losses(model, ids, head=plain_head(model))[0]
        for position in range(1, 24):
            labels = torch.full_like(ids, -100)
            labels[0, position] = ids[0, position]
            theirs = model(input_ids=ids, labels=labels).loss
            torch.testing.assert_close(ours[position - 1], theirs, rtol=1e-5, atol=1e-5)


def test_heads_that_models_scale_afterwards_are_not_taken_for_plain():
    assert plain_head(tiny_model("llama")) is not None
    assert plain_head(tiny_model("gemma2")) is None
    assert plain_head(tiny_model("granite", logits_scaling=8.0)) is None


def test_chunks_batches_and_kept_tokens_do_not_change_a_loss(model, monkeypatch):
    ids = torch.randint(3, 400, (5, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = token_losses(model, ids, head=None)
    monkeypatch.setattr("ropepatch.evals.losses.LOGITS_PER_CHUNK", 7 * 400)
    monkeypatch.setattr("ropepatch.evals.losses._LEAST_TOKENS", 1)
    monkeypatch.setattr("ropepatch.evals.losses.TOKENS_PER_BATCH", 80)
    ours = batched_losses(model, ids, keep=11, head=plain_head(model))
    torch.testing.assert_close(ours, whole[:, -11:])
    assert ours.dtype == torch.float32


@pytest.mark.parametrize("method", ["linear", "yarn"])
def test_one_pass_equals_a_run_per_bin_for_a_static_method(model, windows, method):
    with patched(model, method, factor=4):
        assert one_pass_is_exact(model, windows, 128, head=plain_head(model))
        once = position_losses(model, windows, (1, 128), head=None)
        per_bin = position_losses(model, windows, bin_edges(LENGTHS), head=None)
    torch.testing.assert_close(once, per_bin, rtol=1e-5, atol=1e-5)


def test_length_dependent_method_is_told_from_a_static_one(windows):
    model = tiny_model("llama", vocab_size=400)
    model.get_output_embeddings().weight.data.mul_(30)
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data.mul_(30)
    with patched(model, "dynamic_ntk", factor=4):
        assert not one_pass_is_exact(model, windows, 128, head=plain_head(model))


def test_bins_without_one_pass_are_read_where_the_run_ends(model, windows):
    with patched(model, "dynamic_ntk", factor=4):
        losses = position_losses(model, windows, (1, 32, 64), head=None)
        alone = batched_losses(model, windows.prefix(32), head=None)
    torch.testing.assert_close(losses[:, :31], alone)


def test_losses_of_an_encoder_decoder_model_are_those_of_its_own_decoding(seq2seq):
    ids = torch.randint(3, 400, (2, 40), generator=torch.Generator().manual_seed(1))
    ours = batched_losses(seq2seq, ids, keep=5, head=plain_head(seq2seq))
    with torch.no_grad():
        for place in range(35, 40):
            # One token at a time, by hand: the start token, then what was decoded before.
            start = torch.full((2, 1), seq2seq.config.decoder_start_token_id)
            decoded = torch.cat([start, ids[:, 35:place]], dim=1)
            answer = seq2seq(input_ids=ids[:, :35], decoder_input_ids=decoded).logits[:, -1]
            theirs = -answer.double().log_softmax(-1)[torch.arange(2), ids[:, place]]
            torch.testing.assert_close(ours[:, place - 35].double(), theirs, rtol=1e-5, atol=1e-5)


def test_a_decoder_beside_an_encoder_never_scores_more_than_the_targets(seq2seq, windows):
    assert not one_pass_is_exact(seq2seq, windows, 128, head=None)
    ends = run_ends(seq2seq, (1, 16, 32, 70), 32, one_pass=False)
    assert ends == (1, 6, 38, 70)
    losses = position_losses(seq2seq, windows, ends, head=None)
    assert losses.shape == (6, 69)
    last = batched_losses(seq2seq, windows.prefix(70), keep=32, head=None)
    assert torch.equal(losses[:, -32:], last)


def test_runs_of_a_causal_model_end_where_the_bins_end(model):
    edges = bin_edges(LENGTHS)
    assert run_ends(model, edges, 16, one_pass=False) == edges
    assert run_ends(model, edges, 16, one_pass=True) == (1, 128)


def test_bins_reach_down_to_sixteen_tokens():
    assert bin_edges((128, 256, 512)) == (1, 16, 32, 64, 128, 256, 512)
    assert bin_edges((10, 100)) == (1, 10, 100)


def test_targets_are_the_same_tokens_at_every_length(windows):
    longest = windows.suffix(128)
    for length in LENGTHS:
        assert torch.equal(windows.suffix(length)[:, -16:], longest[:, -16:])
        assert windows.suffix(length).shape == (6, length)


def test_windows_are_text_of_the_documents_that_they_name(windows, tokenizer):
    for ids, document in zip(windows.input_ids, windows.documents, strict=True):
        text = next(d.text for d in DOCUMENTS if d.name == windows.names[document])
        assert tokenizer.decode(ids[1:-1]).strip() in text


def test_no_token_is_a_target_twice(tokenizer):
    long = [prose("long", 700, 9)]
    cut = held_out_windows(long, tokenizer, longest=64, count=20, targets=16)
    (text,) = plain_tokens(long, tokenizer)
    ends = [
        end
        for end in range(64, len(text) + 1)
        for ids in cut.input_ids
        if torch.equal(text[end - 64 : end], ids)
    ]
    assert len(ends) == 20
    assert min(np.diff(sorted(ends))) >= 16


def test_windows_are_spread_evenly_over_documents(tokenizer):
    cut = held_out_windows(DOCUMENTS, tokenizer, longest=64, count=8, targets=16)
    assert np.bincount(cut.documents).tolist() == [2, 2, 2, 2]


def test_windows_are_the_same_in_every_run_and_differ_between_seeds(tokenizer):
    def digest(seed):
        options = {"longest": 64, "count": 3, "targets": 16, "seed": seed}
        return held_out_windows(DOCUMENTS, tokenizer, **options).digest()

    assert digest(0) == digest(0)
    assert len({digest(seed) for seed in range(6)}) > 1


def test_short_documents_are_left_out_by_name(tokenizer):
    documents = [*DOCUMENTS, Document("tiny", "def length")]
    cut = held_out_windows(documents, tokenizer, longest=64, count=4, targets=16)
    assert cut.too_short == ("tiny",)


def test_bos_starts_every_window_when_asked_for(tokenizer):
    cut = held_out_windows(DOCUMENTS, tokenizer, longest=64, count=4, targets=16, bos=True)
    for length in (32, 64):
        assert (cut.suffix(length)[:, 0] == tokenizer.bos_token_id).all()
    assert (cut.suffix(64)[:, 1:] != tokenizer.bos_token_id).all()


def test_no_window_holds_bos_unless_asked_for(windows, tokenizer):
    assert (windows.input_ids != tokenizer.bos_token_id).all()


def test_window_longer_than_every_document_names_the_longest_one(tokenizer):
    with pytest.raises(DataError, match=r"no document holds a window of 4096 tokens.*'doc3'.* has"):
        held_out_windows(DOCUMENTS, tokenizer, longest=4096, count=2, targets=16)


def test_more_windows_than_the_text_holds_says_how_many_it_holds(tokenizer):
    with pytest.raises(DataError, match=r"500 windows of 64 .* hold \d+; ask for at most \d+"):
        held_out_windows(DOCUMENTS, tokenizer, longest=64, count=500, targets=16)
