"""Every protocol against a plain loop over `model(labels=…)` that was written from its original's source."""

import math

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from ropepatch.corpus import Document, train_tokenizer
from ropepatch.errors import ConfigError, DataError
from ropepatch.evals.perplexity import measure_perplexity
from ropepatch.evals.perplexity_plan import plan_perplexity
from ropepatch.evals.protocols import PROTOCOLS
from ropepatch.evals.texts import read_texts, token_bytes


def prose(name, words, seed):
    rng = np.random.default_rng(seed)
    vocabulary = ["def", "return", "valüe", "import", "€", "for", "in", "if", "else"]
    return Document(name, " ".join(rng.choice(vocabulary, size=words)))


DOCUMENTS = [prose(f"doc{number}", words, number) for number, words in enumerate((60, 45, 83))]
LENGTH, STRIDE = 24, 7


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=400)


def make_tokenizer(*, bos=True, eos=True):
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=400, keys=4, values=4)
    if not bos:
        tokenizer.bos_token = None
    if not eos:
        tokenizer.eos_token = None
    return tokenizer


def encoded(tokenizer):
    texts = [document.text for document in DOCUMENTS]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def measured(model, tokenizer, protocol, length=LENGTH, **options):
    plan = plan_perplexity(tokenizer, DOCUMENTS, protocol=protocol, lengths=(length,), **options)
    (result,) = measure_perplexity(model, plan)
    return result


def loop_of_yarn(model, tokenizer, length, sliding_window, truncate=False):
    """Means of windows and tokens scored in each, by compute_perplexity of YaRN's eval/perplexity.py."""
    add_start_token = tokenizer.bos_token is not None
    room = length - 1 if add_start_token else length
    texts = encoded(tokenizer)
    if truncate:
        texts, sliding_window = [ids[:room] for ids in texts], room
    means, counts = [], []
    for text in texts:
        labels, previous = torch.tensor([text]), 0
        for begin in range(0, labels.size(1), sliding_window):
            end = min(begin + room, labels.size(1))
            fresh = end - previous
            ids = labels[:, begin:end]
            if add_start_token:
                ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], dim=1)
            target = ids.clone()
            target[:, :-fresh] = -100
            with torch.no_grad():
                means.append(model(ids, labels=target).loss.item())
            counts.append(int((target[:, 1:] != -100).sum()))
            previous = end
            if end == labels.size(1):
                break
    return np.array(means), np.array(counts)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("length", [8, LENGTH])
def test_yarn_truncate_is_the_loop_of_yarn(model, bos, length):
    tokenizer = make_tokenizer(bos=bos)
    means, counts = loop_of_yarn(model, tokenizer, length, 256, truncate=True)
    result = measured(model, tokenizer, "yarn-truncate", length)
    assert result.perplexity.value == pytest.approx(math.exp(means.mean()), rel=1e-5)
    assert result.scored_tokens == counts.sum() == 3 * (length - 1)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("stride", [1, STRIDE, 23])
def test_yarn_sliding_is_the_loop_of_yarn_and_last_s_its_mean_of_tokens(model, bos, stride):
    tokenizer = make_tokenizer(bos=bos)
    means, counts = loop_of_yarn(model, tokenizer, LENGTH, stride)
    by_window = measured(model, tokenizer, "yarn-sliding", stride=stride)
    by_token = measured(model, tokenizer, "last-s", stride=stride)
    assert by_window.loss.value == pytest.approx(means.mean(), abs=1e-5)
    assert by_token.loss.value == pytest.approx((means @ counts) / counts.sum(), abs=1e-5)
    assert by_window.scored_tokens == by_token.scored_tokens == counts.sum()


@pytest.mark.parametrize("extra", [0, 1, 2, 5])
def test_longlora_is_its_loop_over_one_stream(model, extra):
    tokenizer = make_tokenizer()
    data = np.array([token for ids in encoded(tokenizer) for token in ids])
    data = data[: LENGTH + 6 * STRIDE + extra]  # where the last window ends matters
    documents = [Document("only", tokenizer.decode(data.tolist()))]
    all_ix = list(range(0, len(data) - LENGTH, STRIDE))
    all_ix.pop()
    losses = []
    for i in all_ix:
        x = torch.from_numpy(data[i : i + LENGTH])[None]
        with torch.no_grad():
            losses.append(model(x, labels=x).loss.item())
    plan = plan_perplexity(
        tokenizer, documents, protocol="longlora", lengths=(LENGTH,), stride=STRIDE
    )
    assert plan.input_ids.tolist() == data.tolist()
    (result,) = measure_perplexity(model, plan)
    assert result.perplexity.value == pytest.approx(2.71828 ** np.mean(losses), rel=1e-5)
    assert result.perplexity.value != pytest.approx(math.exp(np.mean(losses)), rel=1e-7)
    assert result.scored_tokens == len(all_ix) * (LENGTH - 1)


def test_longlora_windows_cross_documents(model):
    tokenizer = make_tokenizer()
    stream = [token for ids in encoded(tokenizer) for token in ids]
    starts = list(range(0, len(stream) - LENGTH, STRIDE))[:-1]
    result = measured(model, tokenizer, "longlora", stride=STRIDE)
    assert sum(one.weight for one in result.documents) == len(starts)
    first = sum(start < len(encoded(tokenizer)[0]) for start in starts)
    assert result.documents[0].weight == first


def loop_of_the_harness(model, tokenizer, prefix, length):
    """Log-likelihood of all documents, by get_rolling_token_windows and make_disjoint_window of lm-eval."""
    total = 0.0
    for tokens in encoded(tokenizer):
        windows = [([prefix, *tokens[: length - 1]], tokens[:length])]
        predicted = length
        while predicted < len(tokens):
            count = min(len(tokens) - predicted, length)
            end = predicted + count
            windows.append((tokens[end - length - 1 : end - 1], tokens[end - count : end]))
            predicted += count
        for context, continuation in windows:
            context = context[: len(context) - (len(continuation) - 1)]
            read = torch.tensor([(context + continuation)[-(length + 1) :][:-1]])
            with torch.no_grad():
                logits = model(read).logits[0, -len(continuation) :].double().log_softmax(-1)
            total += float(logits[torch.arange(len(continuation)), continuation].sum())
    return total


@pytest.mark.parametrize("bos", [True, False])
def test_disjoint_is_the_rolling_likelihood_of_the_harness(model, bos):
    tokenizer = make_tokenizer(bos=bos)
    prefix = tokenizer.bos_token_id if bos else tokenizer.eos_token_id
    total = loop_of_the_harness(model, tokenizer, prefix, LENGTH)
    result = measured(model, tokenizer, "disjoint")
    tokens = sum(map(len, encoded(tokenizer)))
    utf8 = sum(len(document.text.encode()) for document in DOCUMENTS)
    assert result.scored_tokens == tokens
    assert result.loss.value == pytest.approx(-total / tokens, abs=1e-5)
    assert result.bits_per_byte.value == pytest.approx(-total / utf8 / math.log(2), abs=1e-5)


def test_disjoint_windows_are_read_at_their_length_and_no_longer(model, monkeypatch):
    read = []
    forward = model.model.forward

    def spy(*args, input_ids=None, **kwargs):
        read.append(input_ids.shape[1])
        return forward(*args, input_ids=input_ids, **kwargs)

    tokenizer = make_tokenizer()
    monkeypatch.setattr(model.model, "forward", spy)
    measured(model, tokenizer, "disjoint")
    assert set(read[2:]) == {LENGTH}  # the first two look for the head


@pytest.mark.parametrize(("protocol", "stride"), [("yarn-truncate", None), ("longlora", STRIDE)])
def test_mean_context_counts_the_tokens_before_a_scored_one(model, protocol, stride):
    # BOS and 23 tokens, or 24 tokens of which the first is not scored: contexts 1 … 23 either way.
    assert measured(model, make_tokenizer(), protocol, stride=stride).mean_context == 12.0


def test_mean_context_of_sliding_windows_is_near_the_whole_window(model):
    tokenizer = make_tokenizer()
    result = measured(model, tokenizer, "last-s", stride=1)
    sizes = [len(ids) for ids in encoded(tokenizer)]
    # The first window's 1 … 23, then 23 for each token after.
    expected = sum(23 * 12 + 23 * (size - 23) for size in sizes) / sum(sizes)
    assert result.mean_context == pytest.approx(expected)


def test_bytes_of_tokens_are_those_of_their_characters():
    # a: 1 byte, €: 3, 𝄞: 4, ü: 2; the second and third token share €, as byte-level tokens do.
    assert token_bytes("a€𝄞ü", [0, 1, 1, 2, 3]).tolist() == [1, 0, 3, 4, 2]
    # What stands between tokens is the one's before it, and the text's beginning the first one's.
    assert token_bytes(" a b ", [1, 3]).tolist() == [3, 2]


def test_characters_have_as_many_bytes_as_utf8_gives_them():
    text = "".join(map(chr, [0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF]))
    expected = [len(character.encode()) for character in text]
    assert token_bytes(text, list(range(len(text)))).tolist() == expected


def test_bytes_of_all_tokens_are_those_of_the_text():
    for text, document in zip(read_texts(DOCUMENTS, make_tokenizer()), DOCUMENTS, strict=True):
        assert text.token_bytes.sum() == len(document.text.encode())
        assert (text.token_bytes > 0).any()


def test_without_start_tokens_only_disjoint_is_refused(model):
    tokenizer = make_tokenizer(bos=False, eos=False)
    with pytest.raises(DataError, match="neither; use protocol 'last-s'"):
        measured(model, tokenizer, "disjoint")
    for protocol in PROTOCOLS.keys() - {"disjoint"}:
        stride = STRIDE if PROTOCOLS[protocol].stride else None
        assert measured(model, tokenizer, protocol, stride=stride).loss is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (84,)}, "the longest of 3 documents, 'doc2', has 83 tokens"),
        ({"protocol": "longlora"}, "the 3 documents have 188 tokens together"),
    ],
)
def test_too_little_text_is_told_with_what_there_is(options, message):
    plan = {"protocol": "yarn-truncate", "lengths": (LENGTH,), **options}
    with pytest.raises(DataError, match=message):
        plan_perplexity(make_tokenizer(bos=False), DOCUMENTS, **plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "yarn-slidng"}, "did you mean 'yarn-sliding'"),
        ({"protocol": "disjoint", "stride": 3}, "no stride to choose"),
        ({"protocol": "last-s", "stride": 0}, "at least 1"),
        ({"protocol": "last-s"}, r"windows of 24 tokens at a stride of 256 .* below 24"),
        ({"lengths": (24, 8)}, "distinct, ascending"),
        ({"lengths": (1, 8)}, "at least 2"),
        ({"lengths": ()}, "distinct, ascending"),
    ],
)
def test_mistakes_are_told_before_a_model_runs(options, message):
    with pytest.raises(ConfigError, match=message):
        plan_perplexity(make_tokenizer(), DOCUMENTS, **{"lengths": (LENGTH,), **options})
