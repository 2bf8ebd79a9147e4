"""One file per idea. Importing this package registers every method that ropepatch ships."""

from ropepatch.methods import base_change as base_change
from ropepatch.methods import giraffe as giraffe
from ropepatch.methods import linear as linear
from ropepatch.methods import llama3 as llama3
from ropepatch.methods import log_buckets as log_buckets
from ropepatch.methods import longrope as longrope
from ropepatch.methods import ntk as ntk
from ropepatch.methods import proportional as proportional
from ropepatch.methods import yarn as yarn
from ropepatch.methods.base import (
    AlibiGeometry,
    Method,
    RelativeGeometry,
    RotaryFrequencies,
    RotaryGeometry,
)
from ropepatch.methods.registry import (
    alibi_slopes,
    make_method,
    methods_for,
    register_method,
    rotary_frequencies,
)

__all__ = [
    "AlibiGeometry",
    "Method",
    "RelativeGeometry",
    "RotaryFrequencies",
    "RotaryGeometry",
    "alibi_slopes",
    "make_method",
    "methods_for",
    "register_method",
    "rotary_frequencies",
]
