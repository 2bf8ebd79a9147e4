"""What a method is: options and maths in one dataclass, told about a checkpoint by a geometry."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError, UnsupportedMechanismError
from ropepatch.positions import inverse_frequencies

MECHANISMS = ("rotary",)


def require_number(
    option: str,
    given: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raise MethodOptionError unless `given` is one finite number within the bounds."""
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">=", at_least), (">", above), ("<=", at_most))
        if bound is not None
    ]
    allowed = " ".join(["a finite number", " and ".join(bounds)]).rstrip()
    if (
        isinstance(given, bool)
        or not isinstance(given, int | float)
        or not abs(given) <= sys.float_info.max
    ):
        raise MethodOptionError(f"{option} is {given!r}; allowed: {allowed}")
    if (
        (at_least is not None and given < at_least)
        or (above is not None and given <= above)
        or (at_most is not None and given > at_most)
    ):
        raise MethodOptionError(f"{option} is {given!r}; allowed: {allowed}")


def require_factors(option: str, given: object) -> tuple[float, ...]:
    """The list `given` as a tuple of positive numbers, or a MethodOptionError."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise MethodOptionError(f"{option} is {given!r}; allowed: a list of positive numbers")
    for index, value in enumerate(given):
        require_number(f"{option}[{index}]", value, above=0)
    return tuple(float(value) for value in given)


@dataclass(frozen=True, kw_only=True)
class RotaryGeometry:
    """What a rotary checkpoint tells a method. Raises MethodOptionError when it is degenerate."""

    dim: int  #: rotated channels of a head; smaller than head_dim when rotary is partial
    base: float = 10000.0  #: `rope_theta`
    original_max_position_embeddings: int  #: tokens that the checkpoint was trained to

    def __post_init__(self) -> None:
        if type(self.dim) is not int or self.dim < 2 or self.dim % 2:
            raise MethodOptionError(
                f"dim is {self.dim!r}; allowed: an even number of rotated channels, at least 2"
            )
        require_number("base", self.base, above=1)
        length = self.original_max_position_embeddings
        if type(length) is not int or length < 1:
            raise MethodOptionError(
                f"original_max_position_embeddings is {length!r}; allowed: a whole number of "
                "tokens, at least 1"
            )

    @property
    def inv_freq(self) -> Tensor:
        """The unscaled frequencies, float64. (dim/2,)"""
        return inverse_frequencies(self.dim, self.base)


@dataclass(frozen=True)
class RotaryFrequencies:
    """What a method makes of a geometry."""

    inv_freq: Tensor  #: radians per token, float64; (dim/2,), or (…, dim/2) for lengths (…)
    attention_factor: Tensor | float = 1.0  #: multiplies cos and sin; a tensor is of shape (…)


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods. Subclasses override `rotary`, add options as fields, and are registered."""

    name: ClassVar[str]  #: set by `register_method`
    length_dependent: ClassVar[bool] = False  #: frequencies depend on the length of the sequence
    needs_training: ClassVar[bool] = False  #: useless without a fine-tune
    native_rope_type: ClassVar[str | None] = None  #: transformers' name of the method, if it has it

    factor: float = 1.0  #: target length over the length that the checkpoint was trained to

    def __post_init__(self) -> None:
        require_number("factor", self.factor, at_least=1)

    @classmethod
    def mechanisms(cls) -> tuple[str, ...]:
        """The mechanisms that this method serves."""
        return tuple(name for name in MECHANISMS if getattr(cls, name) is not getattr(Method, name))

    def options(self) -> dict[str, Any]:
        """Every option but `factor`, as given or by default."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["factor"]
        return fields

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        """Scaled frequencies. Length-dependent methods read `length`, tokens of each sequence (…)."""
        raise UnsupportedMechanismError(f"{self.name!r} does not rescale rotary frequencies")

    def native(self, geometry: RotaryGeometry) -> dict[str, Any] | None:
        """The same as transformers' `rope_parameters` (without `partial_rotary_factor`), or None."""
        return None


def stretch(length: Tensor | None, geometry: RotaryGeometry) -> Tensor:
    """max(1, T/L) for every sequence, float64. (…) → (…); no length counts as L."""
    if length is None:
        return torch.ones((), dtype=torch.float64)
    return (length.double() / geometry.original_max_position_embeddings).clamp(min=1.0)
