"""Models that transformers itself scales: the reference for factor 4, `rope_parameters` by hand."""

import functools
import math
from collections.abc import Callable
from typing import Any

from tiny_models import SLIDING_KINDS, TRAINED_LENGTH, tiny_config, tiny_model
from transformers import PreTrainedModel

FACTOR = 4
ROTATED = {"gpt_neox": 4, "stablelm": 4, "phi": 8, "glm4": 8, "nemotron": 8}  # of 16 channels
WITH_LENGTH = {"factor": 4.0, "original_max_position_embeddings": TRAINED_LENGTH}
STOPPED = 1e30  # a divisor that leaves a pair standing still


def by_divisors(divisors: list[float], attention_factor: float = 1.0) -> dict[str, Any]:
    """Any static vector of frequencies, as transformers can take it."""
    return {
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "attention_factor": attention_factor,
        **WITH_LENGTH,
    }


def ntk(theta: float, dim: int) -> dict[str, Any]:
    """b·s^(d/(d−2)), bloc97."""
    return {"rope_type": "default", "rope_theta": theta * FACTOR ** (dim / (dim - 2))}


def power(theta: float, dim: int) -> dict[str, Any]:
    """θ_i·(1 − i/(d/2))^(1/2), arXiv 2308.10882, eq. 5."""
    pairs = dim // 2
    return by_divisors([(1 - i / pairs) ** -0.5 for i in range(pairs)])


def truncated(theta: float, dim: int) -> dict[str, Any]:
    """Kept from one turn within L on, 1/16 turn down to 1/8, stopped below; 2308.10882, eq. 6."""
    frequencies = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    divisors = []
    for frequency in frequencies:
        turns = TRAINED_LENGTH * frequency / (2 * math.pi)
        slowed = 2 * math.pi / (16 * TRAINED_LENGTH)
        divisors.append(1.0 if turns >= 1 else frequency / slowed if turns >= 1 / 8 else STOPPED)
    return by_divisors(divisors)


def proportional(theta: float, dim: int) -> dict[str, Any]:
    """Three quarters of the pairs turn, four times slower."""
    return {"rope_type": "proportional", "partial_rotary_factor": 0.75, "factor": 4.0}


# Method → what the config of a stock model says, from rope_theta and the rotated channels.
NATIVE: dict[str, Callable[[float, int], dict[str, Any]]] = {
    "linear": lambda theta, dim: {"rope_type": "linear", "factor": 4.0},
    "yarn": lambda theta, dim: {"rope_type": "yarn", **WITH_LENGTH},
    "ntk_by_parts": lambda theta, dim: {
        "rope_type": "yarn",
        "attention_factor": 1.0,
        **WITH_LENGTH,
    },
    "llama3": lambda theta, dim: {
        "rope_type": "llama3",
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        **WITH_LENGTH,
    },
    "ntk": ntk,
    "base_change": lambda theta, dim: {"rope_type": "default", "rope_theta": 3e6},
    "power": power,
    "truncated": truncated,
    "proportional": proportional,
}
OPTIONS: dict[str, dict[str, Any]] = {"base_change": {"new_base": 3e6}}


def has_native(kind: str, method: str) -> bool:
    """Whether stock transformers has the method for the architecture."""
    # `partial_rotary_factor` means another thing to the two: the part of the head that rotates at all.
    return not (method == "proportional" and kind in ROTATED)


def scaled_config(kind: str, method: str) -> Any:
    """A config whose positions transformers scales to four times the trained length."""
    config = tiny_config(kind)
    layer_types = [None] if kind not in SLIDING_KINDS else ["full_attention"]
    if method == "linear, all layers":
        method, layer_types = "linear", ["full_attention", "sliding_attention"]
    for layer_type in layer_types:
        scale(config, layer_type, NATIVE[method], ROTATED.get(kind, 16))
    config.max_position_embeddings = FACTOR * TRAINED_LENGTH
    if hasattr(config, "original_max_position_embeddings"):  # Phi-3
        config.original_max_position_embeddings = TRAINED_LENGTH
    config.head_dim = 16  # Mixtral says None, which stock yarn cannot take
    return config


def scale(config: Any, layer_type: str | None, native: Callable[..., Any], dim: int) -> None:
    """Put native parameters into a config, for one layer type or the whole."""
    parameters = config.rope_parameters
    old = parameters if layer_type is None else parameters[layer_type]
    new = {**old, **native(old["rope_theta"], dim)}
    config.rope_parameters = new if layer_type is None else {**parameters, layer_type: new}


@functools.cache
def stock_model(kind: str, method: str, *, attention: str | None = None) -> PreTrainedModel:
    """`tiny_model(kind)` with positions that transformers itself scales; shared, so not to be changed."""
    return tiny_model(kind, attention=attention, config=scaled_config(kind, method))
