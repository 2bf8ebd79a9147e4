"""A small byte-level BPE tokenizer whose retrieval keys and values are single reserved tokens."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ropepatch.corpus.documents import Document
from ropepatch.errors import ConfigError, DataError

BOS = "<|bos|>"
PAD = "<|pad|>"
_BYTES = 256


def reserved_token(kind: str, index: int) -> str:
    """The spelling of one reserved token: `<|key_07|>`."""
    return f"<|{kind}_{index:02d}|>"


def train_tokenizer(
    documents: Iterable[Document],
    *,
    vocab_size: int = 2048,
    keys: int = 64,
    values: int = 64,
    model_max_length: int = 256,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from `documents`, with `keys` and `values` reserved tokens.

    BOS, PAD (also end of text) and the reserved tokens come first. Every text can be encoded: all
    256 bytes are in the vocabulary. Raises ConfigError when `vocab_size` has no room for that.
    """
    special = [BOS, PAD]
    special += [reserved_token("key", index) for index in range(keys)]
    special += [reserved_token("value", index) for index in range(values)]
    if vocab_size < len(special) + _BYTES:
        raise ConfigError(
            f"vocab_size={vocab_size} has no room for {len(special)} special tokens and "
            f"{_BYTES} bytes; use at least {len(special) + _BYTES}"
        )
    tokenizer = _byte_level_bpe()
    tokenizer.train_from_iterator(
        (document.text for document in documents), _trainer(vocab_size, special)
    )
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=PAD,
        pad_token=PAD,
        model_max_length=model_max_length,
    )


def encode(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """One int64 (tokens,) tensor per document, BOS first if the tokenizer has one."""
    texts = [document.text for document in documents]
    if not texts:
        raise DataError("no documents to encode")
    # verbose=False: documents are longer than the model on purpose, windows are cut from them.
    batch = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [torch.tensor([*start, *ids], dtype=torch.int64) for ids in batch]


def _byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _trainer(vocab_size: int, special: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
