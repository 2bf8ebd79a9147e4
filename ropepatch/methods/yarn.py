"""YaRN and its parts: keep fast pairs, interpolate slow ones, warm the softmax."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError
from ropepatch.methods.base import (
    LengthDependent,
    Method,
    RotaryFrequencies,
    RotaryGeometry,
    require_number,
    require_one_of,
    stretch,
)
from ropepatch.methods.registry import register_method
from ropepatch.positions import blend, linear_ramp, pair_with_turns, turns


def temperature(factor: Tensor, mscale: float = 1.0) -> Tensor:
    """0.1·mscale·ln s + 1 (arXiv 2309.00071, eq. 22; mscale as in DeepSeek's code). (…) → (…)"""
    return 0.1 * mscale * torch.log(factor) + 1.0


@register_method("ntk_by_parts")
@dataclass(frozen=True, kw_only=True)
class NtkByParts(Method):
    """Keep pairs that turn often within L, interpolate those that do not (arXiv 2309.00071, Def. 2).

    The ramp runs over the pair index, as in the authors' code; `ramp="turns"` follows eq. 18.
    """

    beta_fast: float = 32.0  #: pairs turning more often than this within L are kept
    beta_slow: float = 1.0  #: pairs turning less often than this within L are fully interpolated
    truncate: bool = True  #: round the ramp's ends to whole pairs (index ramp only)
    ramp: Literal["index", "turns"] = "index"  #: what the ramp is linear in

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("beta_slow", self.beta_slow, above=0)
        require_number("beta_fast", self.beta_fast, above=0)
        if self.beta_fast <= self.beta_slow:
            raise MethodOptionError(
                f"beta_fast is {self.beta_fast!r}; allowed: more than beta_slow ({self.beta_slow!r})"
            )
        if not isinstance(self.truncate, bool):
            raise MethodOptionError(f"truncate is {self.truncate!r}; allowed: True or False")
        require_one_of("ramp", self.ramp, "index", "turns")

    def kept(self, geometry: RotaryGeometry) -> Tensor:
        """γ: 1 for pairs that keep their frequency, 0 for fully interpolated ones. (dim/2,)"""
        length = geometry.original_max_position_embeddings
        if self.ramp == "turns":
            return linear_ramp(turns(geometry.inv_freq, length), self.beta_slow, self.beta_fast)
        low, high = (
            pair_with_turns(beta, dim=geometry.dim, base=geometry.base, length=length)
            for beta in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # dim − 1 and not dim/2 − 1, as in the authors' code: it changes the ramp of short
        # checkpoints.
        low, high = max(low, 0), min(high, geometry.dim - 1)
        if high < low:
            raise MethodOptionError(
                f"beta_slow is {self.beta_slow!r}; allowed: what some pair turns within {length} "
                'tokens, or ramp="turns"; as it is, no pair would be scaled'
            )
        if low == high:
            high += 0.001
        return 1.0 - linear_ramp(torch.arange(geometry.dim // 2, dtype=torch.float64), low, high)

    def interpolated(self, geometry: RotaryGeometry, factor: Tensor) -> Tensor:
        """Frequencies for factors of shape (…). → (…, dim/2)"""
        kept, inv_freq = self.kept(geometry).to(factor.device), geometry.inv_freq.to(factor.device)
        return blend(inv_freq, inv_freq / factor[..., None], kept)

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        factor = torch.tensor(self.factor, dtype=torch.float64)
        return RotaryFrequencies(self.interpolated(geometry, factor))


@dataclass(frozen=True, kw_only=True)
class Tempered(NtkByParts):
    """NTK-by-parts with an attention factor; the options that YaRN and dynamic YaRN share."""

    attention_factor: float | None = None  #: multiplies cos and sin; by default 0.1·ln s + 1
    mscale: float = 1.0  #: DeepSeek: factor = g(mscale)/g(mscale_all_dim), g(x) = 0.1·x·ln s + 1
    mscale_all_dim: float = 0.0  #: see mscale; 0 makes the divisor 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_factor is not None:
            require_number("attention_factor", self.attention_factor, above=0)
        require_number("mscale", self.mscale, at_least=0)
        require_number("mscale_all_dim", self.mscale_all_dim, at_least=0)

    def tempered(self, geometry: RotaryGeometry, factor: Tensor) -> RotaryFrequencies:
        """Frequencies and attention factor for factors of shape (…)."""
        if self.attention_factor is None:
            warmth = temperature(factor, self.mscale) / temperature(factor, self.mscale_all_dim)
        else:
            # Unscaled sequences stay exactly unscaled, whatever was asked for.
            warmth = torch.where(factor > 1, self.attention_factor, torch.ones_like(factor))
        return RotaryFrequencies(self.interpolated(geometry, factor), warmth)


@register_method("yarn")
@dataclass(frozen=True, kw_only=True)
class Yarn(Tempered):
    """NTK-by-parts, and a softmax warmed by 0.1·ln s + 1 on cos and sin (arXiv 2309.00071, Def. 3)."""

    native_rope_type: ClassVar[str | None] = "yarn"

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        return self.tempered(geometry, torch.tensor(self.factor, dtype=torch.float64))

    def native(self, geometry: RotaryGeometry) -> dict[str, Any] | None:
        if self.ramp != "index":
            return None
        parameters: dict[str, Any] = {
            "rope_type": "yarn",
            "rope_theta": geometry.base,
            "factor": float(self.factor),
            "original_max_position_embeddings": geometry.original_max_position_embeddings,
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.beta_slow),
        }
        if not self.truncate:
            parameters["truncate"] = False
        if (self.attention_factor, self.mscale, self.mscale_all_dim) != (None, 1.0, 0.0):
            # Spelled out, because transformers ignores mscale unless both of the pair are set.
            parameters["attention_factor"] = float(self.rotary(geometry).attention_factor)
        return parameters


@register_method("dynamic_yarn")
@dataclass(frozen=True, kw_only=True)
class DynamicYarn(LengthDependent, Tempered):
    """YaRN at s = max(1, T/L): sequences of up to L tokens are exactly unscaled (jquesnelle, 2023)."""

    def rotary(self, geometry: RotaryGeometry, length: Tensor | None = None) -> RotaryFrequencies:
        return self.tempered(geometry, stretch(length, geometry))
