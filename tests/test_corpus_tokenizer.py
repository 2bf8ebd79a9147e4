"""The byte-level tokenizer and its reserved tokens."""

import pytest
import torch

from ropepatch.corpus import Document, RetrievalVocabulary, encode, train_tokenizer
from ropepatch.errors import ConfigError, DataError

TEXT = "def add(left, right):\n    return left + right\n" * 50


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        [Document("a", TEXT)], vocab_size=320, keys=8, values=9, model_max_length=128
    )


@pytest.mark.parametrize("text", [TEXT, "Grüße 漢字 \t\x01 🙂", "  two  spaces\r\n", ""])
def test_any_text_survives_a_round_trip(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_reserved_tokens_are_single_tokens(tokenizer):
    for token in ("<|key_00|>", "<|key_07|>", "<|value_08|>", "<|bos|>", "<|pad|>"):
        ids = tokenizer(f"x{token}y", add_special_tokens=False)["input_ids"]
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == 1
        assert len(ids) == 3


def test_text_never_encodes_to_a_reserved_token(tokenizer):
    vocabulary = RetrievalVocabulary.from_tokenizer(tokenizer)
    (ids,) = encode([Document("a", TEXT + "key_00 value_00 <| |>")], tokenizer)
    assert not set(ids.tolist()) & {*vocabulary.keys, *vocabulary.values}


def test_the_vocabulary_holds_what_was_reserved(tokenizer):
    vocabulary = RetrievalVocabulary.from_tokenizer(tokenizer)
    assert [tokenizer.convert_ids_to_tokens(key) for key in vocabulary.keys] == [
        f"<|key_{index:02d}|>" for index in range(8)
    ]
    assert len(vocabulary.values) == 9
    assert tokenizer.model_max_length == 128


def test_documents_are_encoded_one_by_one_with_bos_first(tokenizer):
    first, second = encode([Document("a", "def add"), Document("b", "left + right")], tokenizer)
    assert first.dtype == torch.int64
    assert first[0] == second[0] == tokenizer.bos_token_id
    assert tokenizer.decode(second[1:]) == "left + right"
    assert second.tolist() == tokenizer("left + right")["input_ids"]


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    again = train_tokenizer([Document("a", TEXT)], vocab_size=320, keys=8, values=9)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(ConfigError, match=r"vocab_size=300 .* use at least 386"):
        train_tokenizer([Document("a", TEXT)], vocab_size=300)


def test_nothing_to_encode_is_refused(tokenizer):
    with pytest.raises(DataError, match="no documents"):
        encode([], tokenizer)


def test_a_tokenizer_without_reserved_tokens_is_refused():
    plain = train_tokenizer([Document("a", TEXT)], vocab_size=300, keys=0, values=0)
    with pytest.raises(DataError, match="reserves 0 keys and 0 values"):
        RetrievalVocabulary.from_tokenizer(plain)
