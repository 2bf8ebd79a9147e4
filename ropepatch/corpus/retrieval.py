"""Retrieval tasks inside real text: key–value pairs scattered in a document, queried at the end.

Keys and values are single reserved tokens, so a prompt has an exact length in tokens and an
answer is one argmax. The fair chance level is one over the number of values in the context, not
one over the vocabulary: a model that only finds *some* value of the context already reaches it.
"""

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ropepatch.errors import ConfigError, DataError

_RESERVED = re.compile(r"<\|(key|value)_(\d+)\|>")


@dataclass(frozen=True)
class RetrievalVocabulary:
    """Token ids of the reserved keys and values."""

    keys: tuple[int, ...]
    values: tuple[int, ...]

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The reserved tokens of a tokenizer, by their spelling (`<|key_00|>`, `<|value_00|>`)."""
        found: dict[str, list[int]] = {"key": [], "value": []}
        for token, token_id in tokenizer.get_vocab().items():
            if match := _RESERVED.fullmatch(token):
                found[match[1]].append(token_id)
        if len(found["key"]) < 2 or len(found["value"]) < 2:
            raise DataError(
                f"the tokenizer reserves {len(found['key'])} keys and {len(found['value'])} values "
                "for retrieval, at least two of each are needed; add special tokens named "
                "<|key_00|>, <|value_00|>, ... or make one with ropepatch.corpus.train_tokenizer"
            )
        return cls(tuple(sorted(found["key"])), tuple(sorted(found["value"])))


@dataclass(frozen=True)
class RetrievalPrompt:
    """A context that ends with the queried key; the next token has to be `answer`."""

    input_ids: Tensor  #: (length,)
    answer: int
    candidates: tuple[int, ...]  #: the values in the context, for forced choice
    distance: int  #: tokens from the key in the context to the queried key


def retrieval_prompt(
    vocabulary: RetrievalVocabulary, text: Tensor, *, length: int, pairs: int = 8, seed: int
) -> RetrievalPrompt:
    """A prompt of exactly `length` tokens with `pairs` pairs at random places of `text`."""
    rng = np.random.default_rng(seed)
    keys, values = draw_pairs(vocabulary, pairs, rng)
    context, places = _scatter_pairs(text, keys, values, length=length - 1, rng=rng)
    asked = int(rng.integers(pairs))
    return RetrievalPrompt(
        input_ids=torch.from_numpy(np.append(context, keys[asked])),
        answer=int(values[asked]),
        candidates=tuple(int(value) for value in values),
        distance=length - 1 - int(places[asked]),
    )


def retrieval_sequence(
    vocabulary: RetrievalVocabulary,
    text: Tensor,
    *,
    length: int,
    pairs: int,
    queries: int,
    seed: int | tuple[int, ...],
) -> Tensor:
    """A training sequence (length,): pairs scattered in `text`, then `queries` answered queries.

    Every pair is queried once, in random order, before any is queried again.
    """
    rng = np.random.default_rng(seed)
    keys, values = draw_pairs(vocabulary, pairs, rng)
    context, _ = _scatter_pairs(text, keys, values, length=length - 2 * queries, rng=rng)
    order = np.concatenate([rng.permutation(pairs) for _ in range(-(-queries // pairs))])[:queries]
    answered = np.stack([keys[order], values[order]], axis=1).ravel()
    return torch.from_numpy(np.concatenate([context, answered]))


def predictable_tokens(vocabulary: RetrievalVocabulary, sequence: Tensor) -> NDArray[np.bool_]:
    """Which tokens of a retrieval sequence can be predicted at all, (length,).

    Text can. No key can, and a value only if the same pair stands earlier in the sequence.
    """
    tokens = sequence.numpy()
    predictable = ~np.isin(tokens, (*vocabulary.keys, *vocabulary.values))
    known: dict[int, int] = {}
    for place in np.flatnonzero(np.isin(tokens[:-1], vocabulary.keys)):
        key, value = int(tokens[place]), int(tokens[place + 1])
        predictable[place + 1] = known.get(key) == value
        known[key] = value
    return predictable


def draw_pairs(
    vocabulary: RetrievalVocabulary, pairs: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`pairs` distinct keys and `pairs` distinct values in random order, (pairs,) each."""
    most = min(len(vocabulary.keys), len(vocabulary.values))
    if not 1 <= pairs <= most:
        raise ConfigError(f"pairs={pairs} must lie between 1 and the {most} reserved tokens")
    keys = np.asarray(vocabulary.keys)[rng.permutation(len(vocabulary.keys))[:pairs]]
    values = np.asarray(vocabulary.values)[rng.permutation(len(vocabulary.values))[:pairs]]
    return keys, values


def _scatter_pairs(
    text: Tensor,
    keys: NDArray[np.int64],
    values: NDArray[np.int64],
    *,
    length: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`length` tokens of `text` with the pairs put between them, and where each key then stands."""
    words = length - 2 * len(keys)
    window = random_window(text, words, rng)
    gaps = np.sort(rng.integers(0, words + 1, size=len(keys)))
    places = gaps + 2 * np.arange(len(keys))
    context = np.empty(length, dtype=np.int64)
    is_text = np.ones(length, dtype=bool)
    is_text[places] = is_text[places + 1] = False
    context[is_text] = window
    context[places] = keys
    context[places + 1] = values
    return context, places


def random_window(text: Tensor, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`length` consecutive tokens of one document, at a random offset."""
    if length < 0:
        raise ConfigError("the pairs and queries alone are longer than the sequence; use fewer")
    if len(text) < length:
        raise DataError(
            f"the document has {len(text)} tokens, but {length} are needed; leave out short "
            "documents or use a shorter length"
        )
    start = int(rng.integers(len(text) - length + 1))
    window: NDArray[np.int64] = text[start : start + length].long().numpy()
    return window
