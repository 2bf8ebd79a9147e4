"""Tokens on disk: found by what they were made of, whole or made again, mapped and not read."""

import errno
import os
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny_runs import pretraining
from tiny_tokenizer import tiny_tokenizer
from tokenizers import pre_tokenizers

from ropepatch.corpus import Corpus, Document, encode
from ropepatch.errors import TokenCacheError
from ropepatch.training import token_cache
from ropepatch.training.runner import train
from ropepatch.training.token_cache import cache_directory, stored_tokens

TEXTS = ["w3 w4 w5", "w6", "w7 w8"]
TOKENS = [[1, 3, 4, 5], [1, 6], [1, 7, 8]]  # w1 is the BOS token


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encoded(monkeypatch):
    """Names of the documents that were encoded so far."""
    names = []

    def spy(documents, tokenizer):
        names.extend(document.name for document in documents)
        return encode(documents, tokenizer)

    monkeypatch.setattr(token_cache, "encode", spy)
    return names


def words():
    """The tiny tokenizer, for text of several words."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def corpus(texts=TEXTS, identity=None):
    named = [Document(str(number), text) for number, text in enumerate(texts)]
    return Corpus("test", lambda: iter(named), identity)


def stored(*arguments, tokenizer=None, max_tokens=None):
    found = stored_tokens(corpus(*arguments), tokenizer or words(), max_tokens=max_tokens)
    return [document.tolist() for document in found]


def test_every_document_keeps_its_tokens():
    assert stored() == TOKENS


def test_what_was_encoded_is_not_encoded_again(encoded):
    assert stored() == stored() == TOKENS
    assert encoded == ["0", "1", "2"]


@pytest.mark.parametrize(
    "texts", [["w3 w4", " w5", "w6", "w7 w8"], ["w3 w4 w5", "w6", "w7 w9"], ["w6", "w3 w4 w5"]]
)
def test_other_documents_have_other_tokens(texts, encoded):
    stored()
    assert stored(texts) == [[1, *(int(word[1:]) for word in text.split())] for text in texts]
    assert len(encoded) == 3 + len(texts)


def test_another_tokenizer_has_other_tokens(encoded):
    other = words()
    other.bos_token = "w2"
    assert stored() == TOKENS
    assert stored(tokenizer=other) == [[2, *rest] for _, *rest in TOKENS]
    assert stored(tokenizer=words()) == TOKENS
    assert len(encoded) == 6


def test_reading_ends_with_the_document_that_fills_max_tokens():
    endless = Corpus("endless", lambda: (Document(str(n), "w3 w4") for n in count()), "endless")
    found = stored_tokens(endless, words(), max_tokens=1000)
    assert [len(document) for document in found] == [3] * 334


def test_max_tokens_are_part_of_what_is_found():
    assert stored(max_tokens=5) == TOKENS[:2]
    assert stored() == TOKENS


def test_a_corpus_with_an_identity_is_not_read_to_be_found():
    def read():
        yield Document("0", "w3")

    first = stored_tokens(Corpus("stream", read, "commit 1"), words())
    unreadable = Corpus("stream", lambda: pytest.fail("was read"), "commit 1")
    again = stored_tokens(unreadable, words())
    assert [*map(torch.Tensor.tolist, first)] == [*map(torch.Tensor.tolist, again)] == [[1, 3]]
    other = Corpus("stream", lambda: pytest.fail("was read"), "commit 2")
    with pytest.raises(pytest.fail.Exception, match="was read"):
        stored_tokens(other, words())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_tokens_are_mapped_from_the_file(cache):
    found = stored_tokens(corpus(), words())
    (file,) = cache.iterdir()
    assert str(file) in Path("/proc/self/maps").read_text()
    assert found[0].untyped_storage().data_ptr() == found[2].untyped_storage().data_ptr()


def flipped(place):
    def damage(content):
        damaged = bytearray(content)
        damaged[place] ^= 1
        return bytes(damaged)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-3],
        flipped(-1),
        flipped(-30),
        flipped(3),
        lambda _: b"",
        lambda _: b"?" * 99,
    ],
    ids=["truncated", "last byte", "a byte within", "size of the header", "empty", "another file"],
)
def test_a_damaged_file_is_made_again(cache, damage, encoded):
    stored()
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=r"the tokens in .* are damaged, and are made again"):
        assert stored() == TOKENS
    assert stored() == TOKENS
    assert len(encoded) == 6


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_leaves_nothing_and_says_where(cache, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(token_cache, "save_file", refuse)
    with pytest.raises(
        TokenCacheError, match=r"cannot keep tokens in .*cache: .*No space left.*; m"
    ):
        stored()
    assert list(cache.iterdir()) == []


def test_a_reader_that_fails_leaves_nothing(cache):
    def read():
        yield from (Document(str(n), "w3") for n in range(100))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored_tokens(Corpus("stream", read, "stream"), words())
    assert list(cache.iterdir()) == []


def test_the_cache_lies_with_those_of_the_hugging_face_libraries(monkeypatch):
    monkeypatch.setattr(token_cache, "HF_HOME", "/somewhere/huggingface")
    monkeypatch.delenv("ROPEPATCH_CACHE")
    assert cache_directory() == Path("/somewhere/huggingface/ropepatch")
    monkeypatch.setenv("ROPEPATCH_CACHE", "/elsewhere")
    assert cache_directory() == Path("/elsewhere")


def test_progress_is_told_in_tokens():
    heard = []
    many = corpus(["w3 w4 w5 w6"] * 20_000)
    stored_tokens(many, words(), tell=heard.append)
    assert heard[-1] == "test: 0.1 M tokens encoded"


def test_a_run_whose_text_has_changed_trains_on_the_new_text(tmp_path, encoded):
    recipe = pretraining(tmp_path, max_steps=1)
    train(recipe)
    train(replace(recipe, output_dir=str(tmp_path / "same")))
    assert encoded == ["corpus.txt"]
    source = Path(recipe.data.source)
    times = source.stat()
    source.write_text(source.read_text().replace("a", "e"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    train(replace(recipe, output_dir=str(tmp_path / "other")))
    assert encoded == ["corpus.txt", "corpus.txt"]
