"""Positions of long contexts for short training sequences.

They come with a mask of ones: without any mask transformers takes every jump of positions for the
start of another document, and cuts attention there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Skipping = Literal["pose", "random"]


def pose_positions(length: int, target: int, chunks: int, rng: np.random.Generator) -> Tensor:
    """PoSE (arXiv 2309.10400, §3): `chunks` pieces, each moved on by a random number. (length,)

    Pieces have random lengths, and the first starts at 0; a piece is moved by at least as much as
    the one before, the last by at most target − length.
    """
    inner = np.sort(rng.choice(np.arange(1, length), chunks - 1, replace=False))
    lengths = np.diff(np.concatenate(([0], inner, [length])))
    moved = [0]
    for _ in range(chunks - 1):
        moved.append(int(rng.integers(moved[-1], target - length, endpoint=True)))
    return torch.from_numpy(np.arange(length) + np.repeat(moved, lengths))


def random_positions(length: int, target: int, chunks: int, rng: np.random.Generator) -> Tensor:
    """RandPos (arXiv 2305.16843, §3), PoSE's baseline: any `length` of `target` positions, in order."""
    return torch.from_numpy(np.sort(rng.choice(target, length, replace=False)))


_KINDS: dict[Skipping, Callable[[int, int, int, np.random.Generator], Tensor]] = {
    "pose": pose_positions,
    "random": random_positions,
}
assert set(_KINDS) == set(get_args(Skipping))


@dataclass(frozen=True)
class WithSkippedPositions(Dataset[dict[str, Tensor]]):
    """Samples of a dataset with positions up to `target`; those of number i depend on `seed` and i."""

    samples: Dataset[dict[str, Tensor]]
    kind: Skipping
    target: int
    chunks: int
    seed: int

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.samples[index]
        ids = sample["input_ids"]
        # Another stream than the one that the samples themselves are drawn from.
        rng = np.random.default_rng((self.seed, index, 1))
        positions = _KINDS[self.kind](len(ids), self.target, self.chunks, rng)
        return {**sample, "position_ids": positions, "attention_mask": torch.ones_like(ids)}
