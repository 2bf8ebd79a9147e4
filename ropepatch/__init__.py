"""Extend the context of Hugging Face checkpoints that people already have."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ropepatch.checkpoint import load_pretrained as load_pretrained
    from ropepatch.checkpoint import save_pretrained as save_pretrained
    from ropepatch.manifest import PatchInfo as PatchInfo
    from ropepatch.methods import Method as Method
    from ropepatch.methods import RotaryFrequencies as RotaryFrequencies
    from ropepatch.methods import alibi_slopes as alibi_slopes
    from ropepatch.methods import make_method as make_method
    from ropepatch.methods import register_method as register_method
    from ropepatch.methods import rotary_frequencies as rotary_frequencies
    from ropepatch.methods import score_bias as score_bias
    from ropepatch.patch import list_methods as list_methods
    from ropepatch.patch import patch_info as patch_info
    from ropepatch.patch import patch_model as patch_model
    from ropepatch.patch import patched as patched
    from ropepatch.patch import planned_length as planned_length
    from ropepatch.patch import unpatch_model as unpatch_model
    from ropepatch.verification import Verification as Verification
    from ropepatch.verification import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "Method": "methods",
    "PatchInfo": "manifest",
    "RotaryFrequencies": "methods",
    "Verification": "verification",
    "alibi_slopes": "methods",
    "list_methods": "patch",
    "load_pretrained": "checkpoint",
    "make_method": "methods",
    "patch_info": "patch",
    "patch_model": "patch",
    "patched": "patch",
    "planned_length": "patch",
    "register_method": "methods",
    "rotary_frequencies": "methods",
    "save_pretrained": "checkpoint",
    "score_bias": "methods",
    "unpatch_model": "patch",
    "verify": "verification",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; `ropepatch --help` must not wait for them.
    if name not in _HOMES:
        raise AttributeError(f"module 'ropepatch' has no attribute {name!r}")
    return getattr(import_module(f"ropepatch.{_HOMES[name]}"), name)
