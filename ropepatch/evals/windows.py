"""Held-out windows: the same scored tokens at every context length, spread over documents."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document, encode
from ropepatch.errors import DataError


@dataclass(frozen=True)
class Windows:
    """Windows whose last `targets` tokens are scored; no target is in two windows."""

    input_ids: Tensor  #: (windows, longest)
    documents: NDArray[np.int64]  #: (windows,) the document that each window was cut from
    names: tuple[str, ...]  #: of the documents that windows were cut from
    too_short: tuple[str, ...]  #: documents that have no window of the longest length
    bos: int | None  #: token that starts every window, if any

    def suffix(self, length: int) -> Tensor:
        """The last `length` tokens of every window, (windows, length), with BOS where it is used."""
        return _starting_with(self.bos, self.input_ids[:, -length:])

    def prefix(self, length: int) -> Tensor:
        """The first `length` tokens of every window, (windows, length)."""
        return self.suffix(self.input_ids.shape[1])[:, :length]

    def digest(self) -> str:
        """Equal for two evaluations that read the same tokens."""
        content = self.suffix(self.input_ids.shape[1]).contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def held_out_windows(
    documents: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest: int,
    count: int,
    targets: int,
    bos: bool = False,
    seed: int = 0,
) -> Windows:
    """`count` windows of `longest` tokens, as evenly spread over the documents as they allow.

    A window starts with BOS in every case or in none, so that no length has an advantage.
    """
    tokens = plain_tokens(documents, tokenizer)
    rooms = [_room(len(ids), longest, targets) for ids in tokens]
    _check_room(documents, tokens, rooms, longest, count)
    shares = _spread(rooms, count, seed)
    used = [number for number, share in enumerate(shares) if share]
    windows = [window for n in used for window in _cut(tokens[n], longest, shares[n], targets)]
    return Windows(
        input_ids=torch.stack(windows),
        documents=np.repeat(np.arange(len(used)), [shares[n] for n in used]),
        names=tuple(documents[n].name for n in used),
        too_short=tuple(documents[n].name for n, room in enumerate(rooms) if room == 0),
        bos=_bos_token(tokenizer) if bos else None,
    )


def window_rooms(
    documents: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    lengths: Iterable[int],
    targets: int,
) -> dict[int, list[int]]:
    """How many windows of each length each of the documents holds."""
    tokens = plain_tokens(documents, tokenizer)
    return {n: [_room(len(ids), n, targets) for ids in tokens] for n in lengths}


def plain_tokens(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Whole documents as tokens, without BOS."""
    bos = tokenizer.bos_token_id
    encoded = encode(documents, tokenizer)
    return [ids[1:] if len(ids) and int(ids[0]) == bos else ids for ids in encoded]


def _room(tokens: int, longest: int, targets: int) -> int:
    return 0 if tokens < longest else (tokens - longest) // targets + 1


def _check_room(
    documents: list[Document], tokens: list[Tensor], rooms: list[int], longest: int, count: int
) -> None:
    if not any(rooms):
        size, name = max((len(ids), doc.name) for ids, doc in zip(tokens, documents, strict=True))
        raise DataError(
            f"no document holds a window of {longest} tokens; the longest of {len(documents)}, "
            f"{name!r}, has {size}; ask for lengths up to {size} or add longer documents"
        )
    if sum(rooms) < count:
        raise DataError(
            f"{count} windows of {longest} tokens with targets of their own were asked for, but "
            f"{len(documents)} documents hold {sum(rooms)}; ask for at most {sum(rooms)} windows, "
            "for shorter lengths, or add documents"
        )


def _spread(rooms: list[int], count: int, seed: int) -> list[int]:
    """Windows per document: one round over the documents after another, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(rooms))
    shares = [0] * len(rooms)
    while (left := count - sum(shares)) > 0:
        for number in [n for n in order if shares[n] < rooms[n]][:left]:
            shares[number] += 1
    return shares


def _cut(ids: Tensor, longest: int, count: int, targets: int) -> list[Tensor]:
    """`count` windows with disjoint targets; those of a smaller count are among them."""
    steps = (len(ids) - longest) // targets
    starts = [len(ids) - longest - targets * slot for slot in _slots(steps)[:count]]
    return [ids[start : start + longest] for start in sorted(starts, reverse=True)]


def _slots(steps: int) -> list[int]:
    """0 to `steps`: both ends, then the middle of what lies between, and so on."""
    bits = steps.bit_length()
    inner = sorted(range(1, steps), key=lambda slot: f"{slot:0{bits}b}"[::-1])
    return list(dict.fromkeys([0, steps, *inner]))


def _bos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.bos_token_id is None:
        raise DataError("bos=True, but the tokenizer has no BOS token; use bos=False")
    return int(tokenizer.bos_token_id)


def _starting_with(bos: int | None, ids: Tensor) -> Tensor:
    if bos is None:
        return ids
    return torch.cat([torch.full_like(ids[:, :1], bos), ids[:, 1:]], dim=1)
