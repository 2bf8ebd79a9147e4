"""Methods that put another encoding in the place of the checkpoint's own, to be fine-tuned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError, UnsupportedMechanismError
from ropepatch.methods.base import (
    POSITIONS,
    Geometry,
    Method,
    RotaryFrequencies,
    RotaryGeometry,
    require_count,
)

Parameters = Mapping[str, Tensor]  #: what trains, by name


def by_head(values: Tensor, distances: Tensor) -> Tensor:
    """A number for each head, to be combined with distances (…), as they are kept. → (heads, 1 …)"""
    return values.to(distances).reshape(-1, *[1] * distances.dim())


def generator(seed: int) -> torch.Generator:
    """Random numbers of a method's own, on the CPU: the same wherever the model runs."""
    return torch.Generator().manual_seed(seed)


def require_seed(given: object) -> None:
    """Raise MethodOptionError unless `given` can be the option `seed`."""
    if type(given) is not int or not 0 <= given < 2**63:
        raise MethodOptionError(f"seed is {given!r}; allowed: a whole number from 0 to 2^63 − 1")


@dataclass(frozen=True, kw_only=True)
class HeadGeometry(Geometry):
    """What a stack of attention layers tells a bias that is put into it."""

    num_heads: int  #: of queries
    num_layers: int = 1
    bidirectional: bool = False  #: True for encoders, which see the future, too

    def __post_init__(self) -> None:
        require_count("num_heads", self.num_heads, "heads")
        require_count("num_layers", self.num_layers, "layers")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TableGeometry(Geometry):
    """What a model tells vectors that are added to its embeddings, one for each position."""

    rows: int  #: positions that the model is to have
    dim: int  #: channels of an embedding: of the model, not of a head

    def __post_init__(self) -> None:
        require_count("rows", self.rows, "positions")
        require_count("dim", self.dim, "channels", at_least=2)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Replacement(Method):
    """Base of methods that drop what the checkpoint has. Plain transformers cannot load the result."""

    needs_training: ClassVar[bool] = True
    replaces: ClassVar[tuple[str, ...]] = ()  #: mechanisms in whose place it can stand

    @classmethod
    def mechanisms(cls) -> tuple[str, ...]:
        return cls.replaces

    @classmethod
    def unsupported(cls, mechanism: str) -> UnsupportedMechanismError:
        """The error of a mechanism that it does not replace, or is asked to rescale."""
        from ropepatch.methods.registry import serving  # which itself needs this module

        does = (
            "replaces, and does not rescale," if mechanism in cls.replaces else "does not replace"
        )
        return UnsupportedMechanismError(
            f"{cls.name!r} {does} {POSITIONS[mechanism]}; {serving(mechanism)}"
        )

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        """No rotation: all frequencies are 0."""
        if "rotary" not in self.replaces:
            raise self.unsupported("rotary")
        return RotaryFrequencies(torch.zeros_like(geometry.inv_freq))


@dataclass(frozen=True, kw_only=True)
class ScoreBiasMethod(Replacement):
    """Base of biases by distance, added to the scores of every layer."""

    replaces: ClassVar[tuple[str, ...]] = ("rotary", "alibi", "relative", "absolute")
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {}  #: of what trains, held at every step

    #: a set of parameters for every layer (UMT5, arXiv 2304.09151), not one that all layers share
    per_layer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.per_layer, bool):
            raise MethodOptionError(f"per_layer is {self.per_layer!r}; allowed: True or False")

    def initial(self, geometry: HeadGeometry) -> dict[str, Tensor]:
        """What trains in a layer, float64, the same every time; nothing by default.

        Each (heads,) or (…, heads). Raises MethodOptionError for heads that it cannot serve.
        """
        return {}

    def bias(self, geometry: HeadGeometry, distances: Tensor, parameters: Parameters) -> Tensor:
        """Bias at distances query − key, in the floating dtype of `distances`. (…) → (heads, …)

        Finite at every distance, also at those that a mask hides, or −inf where the method itself
        hides a direction; gradients are finite everywhere.
        """
        raise NotImplementedError

    def beyond(
        self, geometry: HeadGeometry, parameters: dict[str, Tensor], longest: int
    ) -> dict[str, Tensor]:
        """Parameters that were fitted to distances up to `longest`, with what speaks of farther ones."""
        return parameters


@dataclass(frozen=True, kw_only=True)
class TableMethod(Replacement):
    """Base of vectors by position, added to the embeddings."""

    replaces: ClassVar[tuple[str, ...]] = ("rotary", "absolute")

    def initial(self, geometry: TableGeometry) -> dict[str, Tensor]:
        """What trains, float64, the same every time; nothing by default."""
        return {}

    def vectors(self, geometry: TableGeometry, positions: Tensor, parameters: Parameters) -> Tensor:
        """Vectors of positions, whole numbers below `rows`, float32 or wider. (…) → (…, dim)"""
        raise NotImplementedError

    def longest(self, geometry: TableGeometry) -> int | None:
        """Positions that there are; None: as many as asked for."""
        return None
