"""What a small model is trained on: text, retrieval inside text, repeats, and early copy drills.

A small model does not learn retrieval from text with a few queries in it: answers are a percent
of the loss. In drills nearly every scored token is found by looking back, so the skill is there
before text takes over.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ropepatch.corpus.retrieval import (
    RetrievalVocabulary,
    draw_pairs,
    predictable_tokens,
    retrieval_sequence,
)
from ropepatch.errors import ConfigError
from ropepatch.training.chunked_loss import IGNORED
from ropepatch.training.skipped_positions import IntArray
from ropepatch.training.text import BoolArray, Text, TextSource

_PAIRS = (4, 16)  #: in a retrieval sequence; each is queried once
_DRILL_PAIRS = (2, 24)
_DRILL_PERIOD = (4, 64)  #: tokens in the block that a drill repeats
_SHORTEST_REPEAT = 16  #: tokens; shorter segments recur in source code anyway


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the sequences that are not plain text; the rest is."""

    retrieval: float = 0.15  #: pairs scattered in text and queried at the end
    repeats: float = 0.05  #: text in which a segment comes twice
    drills: float = 0.7  #: copy drills, while the drill phase lasts
    drill_phase: float = 0.0  #: how much of the run the drill phase takes, from its start

    def __post_init__(self) -> None:
        for name in ("retrieval", "repeats", "drills", "drill_phase"):
            if not 0.0 <= (share := getattr(self, name)) <= 1.0:
                raise ConfigError(f"{name}={share} must be a share between 0 and 1")
        if self.retrieval + self.repeats > 1.0:
            raise ConfigError(
                f"retrieval={self.retrieval} and repeats={self.repeats} add up to more than 1"
            )

    @property
    def need_keys(self) -> bool:
        """Whether some sequences are made of reserved tokens."""
        return self.retrieval > 0 or (self.drills > 0 and self.drill_phase > 0)


@dataclass(frozen=True, eq=False)
class TrainingMixture(Dataset[dict[str, Tensor]]):
    """`samples` sequences of `text.length` tokens; number i depends on `seed` and i only.

    To be read in order: the drills come first. Labels are those of transformers (the model
    shifts them), with -100 for tokens that nothing in the context can predict. With a
    `target_length`, as for a prefix language model (arXiv 1910.10683, section 3.2.1): the encoder
    reads `length` − `target_length` tokens, and only the others, the decoder's, are labels.
    """

    text: TextSource
    vocabulary: RetrievalVocabulary  #: may be empty when the shares need none
    vocab_size: int
    samples: int = field(kw_only=True)
    seed: int = field(kw_only=True, default=0)
    shares: Shares = field(kw_only=True, default_factory=Shares)
    target_length: int | None = field(kw_only=True, default=None)

    def __post_init__(self) -> None:
        if self.shares.retrieval > 0:
            self.text.document(np.random.default_rng(self.seed))  # says now if there is none

    @property
    def length(self) -> int:
        """Tokens in a sequence."""
        return self.text.length

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.samples:
            raise IndexError(f"sequence {index} of a mixture of {self.samples}")
        tokens, scored, columns, _ = self.sequence(index)
        labels = np.where(scored, tokens, IGNORED)
        if self.target_length is not None:
            tokens, labels = tokens[: -self.target_length], labels[-self.target_length :]
        item = {"input_ids": tokens, "labels": labels, **columns}
        return {name: torch.from_numpy(values) for name, values in item.items()}

    def sequence(self, index: int) -> Text:
        """What `index` stands for, before it is cut for an encoder."""
        rng = np.random.default_rng((self.seed, index))
        in_drill_phase = index < self.shares.drill_phase * self.samples
        if in_drill_phase and rng.random() < self.shares.drills:
            return Text(*self._drill(rng), self.text.columns(rng))
        kind = rng.random()
        if kind < self.shares.retrieval:
            return Text(*self._retrieval(rng), self.text.columns(rng))
        text = self.text.draw(rng)
        if kind < self.shares.retrieval + self.shares.repeats:
            _repeat_segment(_longest_piece(text), rng)
        return text

    def _retrieval(self, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
        pairs = int(rng.integers(_PAIRS[0], _PAIRS[1], endpoint=True))
        # A pair and its query take four tokens; at least half of the sequence stays text.
        pairs = max(1, min(pairs, self.length // 8, len(self.vocabulary.keys)))
        sequence = retrieval_sequence(
            self.vocabulary,
            self.text.document(rng),
            length=self.length,
            pairs=pairs,
            queries=pairs,
            seed=int(rng.integers(2**62)),
        )
        return sequence.numpy(), predictable_tokens(self.vocabulary, sequence)

    def _drill(self, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
        kind = rng.random()
        if kind < 0.8:
            return self._pair_drill(rng)
        reserved = np.array(self.vocabulary.keys + self.vocabulary.values)
        alphabet = reserved if kind < 0.9 else np.arange(self.vocab_size)
        return self._block_drill(alphabet, rng)

    def _pair_drill(self, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
        """A few pairs over and over in random order; a value is scored once its pair is known."""
        most = min(_DRILL_PAIRS[1], len(self.vocabulary.keys), len(self.vocabulary.values))
        keys, values = draw_pairs(self.vocabulary, _log_uniform(_DRILL_PAIRS[0], most, rng), rng)
        order = rng.integers(len(keys), size=self.length // 2 + 1)
        tokens = np.stack([keys[order], values[order]], axis=1).ravel()[: self.length]
        return tokens, predictable_tokens(self.vocabulary, torch.from_numpy(tokens))

    def _block_drill(
        self, alphabet: IntArray, rng: np.random.Generator
    ) -> tuple[IntArray, BoolArray]:
        """A random block repeated to the end; scored from its second time on."""
        period = _log_uniform(*_DRILL_PERIOD, rng)
        block = alphabet[rng.integers(len(alphabet), size=period)]
        return np.resize(block, self.length), np.arange(self.length) >= period


def _longest_piece(text: Text) -> IntArray:
    """A view: what stands in another document is not seen from there."""
    pieces = np.split(text.tokens, text.starts[1:])
    return max(pieces, key=len)


def _repeat_segment(window: IntArray, rng: np.random.Generator) -> None:
    """Write a copy of an early segment of `window` over a later one, in place."""
    longest = len(window) // 3
    size = int(rng.integers(min(_SHORTEST_REPEAT, longest), longest, endpoint=True))
    first = int(rng.integers(len(window) - 2 * size, endpoint=True))
    second = int(rng.integers(first + size, len(window) - size, endpoint=True))
    window[second : second + size] = window[first : first + size]


def _log_uniform(low: int, high: int, rng: np.random.Generator) -> int:
    """A whole number from `low` to `high`, small ones as often as large ones."""
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))
