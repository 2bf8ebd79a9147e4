"""What a method is: options and maths in one dataclass, told about a checkpoint by a geometry."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from operator import ge, gt, le
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError, UnsupportedMechanismError
from ropepatch.positions import alibi_slopes, inverse_frequencies, relative_buckets

POSITIONS = {  #: what a mechanism has that a method may change
    "rotary": "rotary frequencies",
    "alibi": "ALiBi",
    "relative": "relative buckets",
    "absolute": "tables of positions",
}
MECHANISMS = tuple(POSITIONS)


def require_number(
    option: str,
    given: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raise MethodOptionError unless `given` is one finite number within the bounds."""
    checks = ((">=", at_least, ge), (">", above, gt), ("<=", at_most, le))
    bounds = [(sign, bound, holds) for sign, bound, holds in checks if bound is not None]
    if (
        isinstance(given, bool)
        or not isinstance(given, int | float)
        or not abs(given) <= sys.float_info.max
        or not all(holds(given, bound) for _, bound, holds in bounds)
    ):
        allowed = " and ".join(f"{sign} {bound:g}" for sign, bound, _ in bounds)
        message = f"{option} is {given!r}; allowed: a finite number {allowed}"
        raise MethodOptionError(message.rstrip())


def require_count(option: str, given: object, unit: str, *, at_least: int = 1) -> None:
    """Raise MethodOptionError unless `given` is a whole number of `unit`, `at_least` so many."""
    if type(given) is not int or given < at_least:
        raise MethodOptionError(
            f"{option} is {given!r}; allowed: a whole number of {unit}, at least {at_least}"
        )


def require_one_of(option: str, given: object, *allowed: str) -> None:
    """Raise MethodOptionError unless `given` is one of the words `allowed`."""
    if given not in allowed:
        words = [repr(word) for word in allowed]
        listed = f"{', '.join(words[:-1])} or {words[-1]}"
        raise MethodOptionError(f"{option} is {given!r}; allowed: {listed}")


def require_factors(option: str, given: object) -> tuple[float, ...]:
    """The list `given` as a tuple of positive numbers, or a MethodOptionError."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise MethodOptionError(f"{option} is {given!r}; allowed: a list of positive numbers")
    for index, value in enumerate(given):
        require_number(f"{option}[{index}]", value, above=0)
    return tuple(float(value) for value in given)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a checkpoint tells a method. Raises MethodOptionError when it is degenerate."""

    original_max_position_embeddings: int  #: tokens that the checkpoint was trained to

    def __post_init__(self) -> None:
        length = self.original_max_position_embeddings
        require_count("original_max_position_embeddings", length, "tokens")


@dataclass(frozen=True, kw_only=True)
class RotaryGeometry(Geometry):
    """What a rotary checkpoint tells a method."""

    dim: int  #: rotated channels of a head; smaller than head_dim when rotary is partial
    base: float = 10000.0  #: `rope_theta`

    def __post_init__(self) -> None:
        if type(self.dim) is not int or self.dim < 2 or self.dim % 2:
            raise MethodOptionError(
                f"dim is {self.dim!r}; allowed: an even number of rotated channels, at least 2"
            )
        require_number("base", self.base, above=1)
        super().__post_init__()

    @property
    def inv_freq(self) -> Tensor:
        """The unscaled frequencies, float64. (dim/2,)"""
        return inverse_frequencies(self.dim, self.base)


@dataclass(frozen=True, kw_only=True)
class AlibiGeometry(Geometry):
    """What a checkpoint with linear biases tells a method."""

    num_heads: int
    bias_max: float = 8.0  #: the gentlest slope is 2^−bias_max; `alibi_bias_max` of MPT
    slope_scale: float = 1.0  #: Falcon divides the bias, too, by the root of head_dim

    def __post_init__(self) -> None:
        require_count("num_heads", self.num_heads, "heads")
        require_number("bias_max", self.bias_max, above=0)
        require_number("slope_scale", self.slope_scale, above=0)
        super().__post_init__()

    @property
    def slopes(self) -> Tensor:
        """The unscaled slopes, float64. (num_heads,)"""
        return alibi_slopes(self.num_heads, self.bias_max) * self.slope_scale


@dataclass(frozen=True, kw_only=True)
class RelativeGeometry(Geometry):
    """What a checkpoint with T5's bucketed biases tells a method."""

    num_buckets: int = 32  #: rows of the table, both directions together
    max_distance: int = 128  #: tokens from which on every distance is in the last bucket
    bidirectional: bool  #: True for encoders, which tell the future from the past

    def __post_init__(self) -> None:
        directions = 2 if self.bidirectional else 1
        require_count("num_buckets", self.num_buckets, "buckets", at_least=2 * directions)
        if self.num_buckets % directions:
            raise MethodOptionError(
                f"num_buckets is {self.num_buckets}; allowed: an even number when bidirectional"
            )
        # Above the buckets of one distance each: the logarithm of the ratio is a divisor.
        least = self.num_buckets // directions // 2 + 1
        require_count("max_distance", self.max_distance, "tokens", at_least=least)
        super().__post_init__()

    def buckets(self, relative_position: Tensor) -> Tensor:
        """The unscaled bucket of key − query, long. (…) → (…)"""
        return relative_buckets(
            relative_position,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )


@dataclass(frozen=True)
class RotaryFrequencies:
    """What a method makes of a geometry."""

    inv_freq: Tensor  #: radians per token, float64; (dim/2,), or (…, dim/2) for lengths (…)
    attention_factor: Tensor | float = 1.0  #: multiplies cos and sin; a tensor is of shape (…)


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods. Subclasses override the mechanisms that they serve, with options as fields."""

    name: ClassVar[str]  #: set by `register_method`
    length_dependent: ClassVar[bool] = False  #: reads the length of the sequence
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
        raise self.unsupported("rotary")

    def alibi(self, geometry: AlibiGeometry, length: Tensor | None = None) -> Tensor:
        """Scaled slopes, float64: (heads,), or (…, heads) by length-dependent methods for lengths (…)."""
        raise self.unsupported("alibi")

    def relative(self, geometry: RelativeGeometry, relative_position: Tensor) -> Tensor:
        """The scaled bucket of key − query, long. (…) → (…)"""
        raise self.unsupported("relative")

    def absolute(self, positions: Tensor) -> Tensor:
        """Where in the checkpoint's table positions are looked up, float64. (…) → (…)

        Between two rows their vectors are blended by distance.
        """
        raise self.unsupported("absolute")

    @classmethod
    def unsupported(cls, mechanism: str) -> UnsupportedMechanismError:
        """The error of a mechanism that this method does not serve, naming methods that do."""
        from ropepatch.methods.registry import serving  # which itself needs this module

        return UnsupportedMechanismError(
            f"{cls.name!r} does not rescale {POSITIONS[mechanism]}; {serving(mechanism)}"
        )

    def native_relative(self, geometry: RelativeGeometry) -> int | None:
        """The `max_distance` with which transformers makes the same buckets, or None."""
        return None

    def native(self, geometry: RotaryGeometry) -> dict[str, Any] | None:
        """The same as transformers' `rope_parameters` (without `partial_rotary_factor`), or None."""
        return None


@dataclass(frozen=True, kw_only=True)
class LengthDependent(Method):
    """Base of methods that scale every row by its length.

    A row whose cached keys are kept is scaled for more than it has: for the next of L, L·g, L·g², …
    tokens with g = `bucket_growth`, of which the target length is one, too. It is rotated on to the
    next when it outgrows that.
    """

    length_dependent: ClassVar[bool] = True

    #: g; 1 scales for the very length, and rotates all keys at every step: in bfloat16 each time
    #: rounds them
    bucket_growth: float = 2.0
    training_length: int | None = None  #: tokens that every row counts as in training mode

    def __post_init__(self) -> None:
        super().__post_init__()
        least = (
            1 if self.bucket_growth == 1 else 1.01
        )  # of less there would be a bucket for each token
        require_number("bucket_growth", self.bucket_growth, at_least=least)
        if self.training_length is not None:
            require_count("training_length", self.training_length, "tokens")

    def bucket(self, length: Tensor, original: int) -> Tensor:
        """Tokens for which rows of `length` tokens are scaled, of a model trained to `original`."""
        if self.bucket_growth == 1:
            return length
        sizes = _bucket_sizes(original, self.bucket_growth, round(self.factor * original))
        table = torch.tensor(sizes, device=length.device)
        return table[torch.searchsorted(table, length)]


def _bucket_sizes(original: int, growth: float, target: int) -> list[int]:
    """All lengths for which rows are scaled, up to more than any row has."""
    sizes = [original]
    while sizes[-1] < 1 << 40:
        sizes.append(max(sizes[-1] + 1, round(min(sizes[-1] * growth, 1 << 40))))
    return sorted({*sizes, target})


def stretch(length: Tensor | None, geometry: Geometry) -> Tensor:
    """max(1, T/L) for every sequence, float64. (…) → (…); no length counts as L."""
    if length is None:
        return torch.ones((), dtype=torch.float64)
    return (length.double() / geometry.original_max_position_embeddings).clamp(min=1.0)
