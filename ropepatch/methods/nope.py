"""No positions at all: what a token sees of the order is the causal mask."""

from dataclasses import dataclass
from typing import ClassVar

from ropepatch.methods.base import MECHANISMS
from ropepatch.methods.registry import register_method
from ropepatch.methods.replacement import Replacement


@register_method("nope")
@dataclass(frozen=True, kw_only=True)
class Nope(Replacement):
    """Drop what there is (arXiv 2305.19466); of a trained rotary model that is DroPE (arXiv 2512.12167)."""

    replaces: ClassVar[tuple[str, ...]] = MECHANISMS
