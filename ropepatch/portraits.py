"""What there is to see of an encoding: the numbers behind the tables and pictures of `inspect`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypedDict

import torch
from torch import Tensor

from ropepatch.errors import UnsupportedMechanismError
from ropepatch.methods import Method, RotaryGeometry
from ropepatch.methods.replacement import (
    HeadGeometry,
    ScoreBiasMethod,
    TableGeometry,
    TableMethod,
)
from ropepatch.methods.xpos import XPos
from ropepatch.positions import decay_bound, turns

#: A bias reaches to the first distance at which a key's weight in the softmax is 1/1000 of what it has at
#: distance 0, or less.
FADED = -math.log(1000)
FARTHEST = 1 << 20  #: tokens up to which a reach is looked for
_BLOCK = 1 << 14
_HERE = torch.zeros(1, dtype=torch.float64)
_SAME = 1e-5  #: relative; stock frequencies are float32

UNSCALED = "unscaled"  #: in the place of a method

#: What a method makes of a pair, from the fastest to the slowest.
TREATMENTS = ("sped up", "kept", "blended", "interpolated", "slowed more", "stopped")


class Caption(TypedDict):
    """What every portrait says first."""

    method: str  #: and its factor, or what else makes it what it is
    part: str  #: which of a model's encodings it is, if it has several
    length: int  #: tokens trained to
    target: int  #: tokens that it is to be used for


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """Base of what is shown of an encoding; see Caption."""

    reads: ClassVar[tuple[str, ...]]  #: fields of Sizes, besides the trained length

    method: str
    part: str = ""
    length: int
    target: int

    @property
    def title(self) -> str:
        """`decoder, yarn, factor 4`."""
        return f"{self.part}, {self.method}" if self.part else self.method


@dataclass(frozen=True, kw_only=True)
class RotaryPortrait(Portrait):
    """Frequencies as trained, and as a method makes them for the target length."""

    reads: ClassVar[tuple[str, ...]] = ("dim", "base")

    geometry: RotaryGeometry
    factor: float  #: by which full interpolation divides
    inv_freq: Tensor  #: at the target length, float64 (dim/2,)
    attention_factor: float = 1.0
    log_decay: Tensor | None = None  #: xPos: nats for each token of distance, below 0 (dim/2,)

    @property
    def turns(self) -> Tensor:
        """Full rotations of every pair within the trained length, as trained. (dim/2,)"""
        return turns(self.geometry.inv_freq, self.length)

    @property
    def ratios(self) -> Tensor:
        """Frequency at the target length over that of training. (dim/2,)"""
        return self.inv_freq / self.geometry.inv_freq

    @property
    def treatments(self) -> list[str]:
        """What is made of every pair, in words of TREATMENTS."""
        return [_treatment(ratio, self.factor) for ratio in self.ratios.tolist()]

    @property
    def leaves_range(self) -> Tensor:
        """Pairs that reach angles which training did not: less than a turn then, and more now. (dim/2,)"""
        trained = self.length * self.geometry.inv_freq
        return (self.turns < 1) & (self.target * self.inv_freq > trained * (1 + _SAME))

    def decay_bound(self, distances: Tensor) -> Tensor:
        """See positions.decay_bound, at the target length. (n,) → (n,)"""
        log_decay = 0.0 if self.log_decay is None else self.log_decay
        return decay_bound(self.inv_freq, distances, log_decay)


@dataclass(frozen=True, kw_only=True)
class BiasPortrait(Portrait):
    """What is added to scores, by the distance from query back to key."""

    reads: ClassVar[tuple[str, ...]] = ("num_heads",)

    bias: Callable[
        [Tensor], Tensor
    ]  #: of float64 distances (n,), negative in the future → (heads, n)
    bidirectional: bool = False

    @property
    def num_heads(self) -> int:
        """Heads with a bias of their own."""
        return len(self.bias(_HERE))

    def against_here(self, distances: Tensor) -> Tensor:
        """The bias less that of distance 0, which is all that a softmax sees. (n,) → (heads, n)"""
        return self.bias(distances) - self.bias(_HERE)

    def reach(self, direction: int = 1) -> list[int | None]:
        """Tokens to the first distance at which a key is FADED, per head; None beyond FARTHEST.

        `direction` is 1 for the past, −1 for the future.
        """
        reached = torch.zeros(self.num_heads, dtype=torch.long)
        for start in range(1, FARTHEST + 1, _BLOCK):
            distances = torch.arange(start, start + _BLOCK, dtype=torch.float64)
            faded = self.against_here(direction * distances) <= FADED
            found = (reached == 0) & faded.any(-1)
            reached = torch.where(found, start + faded.long().argmax(-1), reached)
            if reached.all():
                break
        return [tokens or None for tokens in reached.tolist()]


@dataclass(frozen=True, kw_only=True)
class TablePortrait(Portrait):
    """Vectors that are added to embeddings, by position."""

    reads: ClassVar[tuple[str, ...]] = ("dim",)

    vectors: Callable[[Tensor], Tensor]  #: of whole positions (n,) → (n, dim)
    dim: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a checkpoint tells a method, by default one like Llama 2."""

    original_max_position_embeddings: int = 4096
    dim: int = 128  #: rotated channels of a head, or channels of an embedding
    base: float = 10000.0
    num_heads: int = 8
    bidirectional: bool = False


def portrait_class(method: Method) -> type[Portrait]:
    """The kind of portrait that a method has. Raises UnsupportedMechanismError if it has none."""
    if isinstance(method, ScoreBiasMethod):
        return BiasPortrait
    if isinstance(method, TableMethod):
        return TablePortrait
    if "rotary" in method.mechanisms():
        return RotaryPortrait
    raise _no_portrait(method, "what it rescales is a checkpoint's own; give a MODEL, too")


def portrait(method: Method, sizes: Sizes, part: str = "") -> Portrait:
    """What a method makes of such sizes. Raises UnsupportedMechanismError where nothing can be seen."""
    if isinstance(method, ScoreBiasMethod):
        return _bias_portrait(method, sizes, part)
    if isinstance(method, TableMethod):
        return _table_portrait(method, sizes, part)
    length = sizes.original_max_position_embeddings
    geometry = RotaryGeometry(
        dim=sizes.dim, base=sizes.base, original_max_position_embeddings=length
    )
    return rotary_portrait(method, geometry, part)


def rotary_portrait(method: Method, geometry: RotaryGeometry, part: str = "") -> RotaryPortrait:
    """Frequencies by a method, of rows of the target length where it reads that."""
    length = geometry.original_max_position_embeddings
    said = caption(method, length, part)
    made = method.rotary(geometry, torch.tensor(said["target"]))
    if not made.inv_freq.any():
        raise _no_portrait(method, "nothing turns: there are no positions")
    return RotaryPortrait(
        **said,
        geometry=geometry,
        factor=method.factor,
        inv_freq=made.inv_freq,
        attention_factor=float(made.attention_factor),
        log_decay=method.log_decay(geometry) if isinstance(method, XPos) else None,
    )


def _bias_portrait(method: ScoreBiasMethod, sizes: Sizes, part: str) -> BiasPortrait:
    length = sizes.original_max_position_embeddings
    geometry = HeadGeometry(
        num_heads=sizes.num_heads,
        bidirectional=sizes.bidirectional,
        original_max_position_embeddings=length,
    )
    bias = partial(method.bias, geometry, parameters=method.initial(geometry))
    if not bias(torch.arange(length, dtype=torch.float64)).any():
        raise _no_portrait(method, "it is 0 at every distance until it is trained")
    return BiasPortrait(
        **caption(method, length, part), bias=bias, bidirectional=sizes.bidirectional
    )


def _table_portrait(method: TableMethod, sizes: Sizes, part: str) -> TablePortrait:
    length = sizes.original_max_position_embeddings
    said = caption(method, length, part)
    geometry = TableGeometry(
        rows=said["target"], dim=sizes.dim, original_max_position_embeddings=length
    )
    if method.longest(geometry) is not None:
        raise _no_portrait(method, "its vectors are random until they are trained")
    vectors = partial(method.vectors, geometry, parameters=method.initial(geometry))
    return TablePortrait(**said, vectors=vectors, dim=sizes.dim)


def caption(method: Method | None, length: int, part: str = "") -> Caption:
    """For an encoding trained to `length` tokens, by a method or as it is."""
    if method is None:
        return Caption(method=UNSCALED, part=part, length=length, target=length)
    return Caption(
        method=f"{method.name}, factor {method.factor:g}",
        part=part,
        length=length,
        target=round(method.factor * length),
    )


def _treatment(ratio: float, factor: float) -> str:
    """In words of TREATMENTS, by how much slower a pair turns than in training."""
    if abs(ratio - 1) <= _SAME:
        return "kept"
    if abs(ratio * factor - 1) <= _SAME:
        return "interpolated"
    if ratio > 1:
        return "sped up"
    if ratio == 0:
        return "stopped"
    return "blended" if ratio * factor > 1 else "slowed more"


def _no_portrait(method: Method, reason: str) -> UnsupportedMechanismError:
    return UnsupportedMechanismError(f"{method.name!r} cannot be shown: {reason}")
