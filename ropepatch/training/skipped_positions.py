"""Positions of long contexts for short training sequences.

They come with a mask of ones: without any mask transformers takes every jump of positions for the
start of another document, and cuts attention there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ropepatch.errors import ConfigError

Skipping = Literal["pose", "random"]
IntArray = NDArray[np.int64]


def pose_positions(length: int, target: int, chunks: int, rng: np.random.Generator) -> IntArray:
    """PoSE (arXiv 2309.10400, §3): `chunks` pieces, each moved on by a random number. (length,)

    Pieces have random lengths, and the first starts at 0; a piece is moved by at least as much as
    the one before, the last by at most target − length.
    """
    inner = np.sort(rng.choice(np.arange(1, length), chunks - 1, replace=False))
    lengths = np.diff(np.concatenate(([0], inner, [length])))
    moved = [0]
    for _ in range(chunks - 1):
        moved.append(int(rng.integers(moved[-1], target - length, endpoint=True)))
    positions: IntArray = np.arange(length) + np.repeat(moved, lengths)
    return positions


def random_positions(length: int, target: int, chunks: int, rng: np.random.Generator) -> IntArray:
    """RandPos (arXiv 2305.16843, §3), PoSE's baseline: any `length` of `target` positions, in order."""
    return np.sort(rng.choice(target, length, replace=False))


_KINDS: dict[Skipping, Callable[[int, int, int, np.random.Generator], IntArray]] = {
    "pose": pose_positions,
    "random": random_positions,
}


@dataclass(frozen=True, kw_only=True)
class Skips:
    """Short sequences with positions of long ones."""

    kind: Skipping = "pose"
    target: int  #: tokens of context whose positions are trained
    chunks: int = 2  #: pieces of a sequence between which PoSE skips
    contiguous: bool = False  #: PoSE of one piece of text, for documents shorter than `target`

    def __post_init__(self) -> None:
        if self.chunks < 2:
            raise ConfigError(
                f"chunks must be at least 2, to skip between them; found {self.chunks}"
            )

    def check(self, length: int) -> None:
        """Raise ConfigError where sequences of `length` tokens cannot have such positions."""
        if self.target <= length:
            raise ConfigError(
                f"positions.target ({self.target}) must be more than length ({length}): "
                "the context to train for, and the tokens to do it with"
            )
        if self.chunks > length:
            raise ConfigError(f"positions.chunks ({self.chunks}) exceed length ({length})")

    def positions(self, length: int, rng: np.random.Generator) -> IntArray:
        """Of one sequence, ascending from 0 or more to less than `target`. (length,)"""
        return _KINDS[self.kind](length, self.target, self.chunks, rng)

    @property
    def skip_text(self) -> bool:
        """Whether text stands where its positions say: PoSE's pieces do, so that far is far."""
        return self.kind == "pose" and not self.contiguous
