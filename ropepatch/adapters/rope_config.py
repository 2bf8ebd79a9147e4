"""What a patch writes into a config, so that a saved model loads right elsewhere or fails loudly."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ropepatch.adapters.rotary import frequency_buffer, parameters_of, prefixed
from ropepatch.attention.rotary import is_scaled
from ropepatch.errors import UnsupportedModelError
from ropepatch.methods import Method, RotaryFrequencies, RotaryGeometry

STOPPED = 1e30  # divisor for a pair that does not turn: finite, so that the JSON stays standard


def native_parameters(
    config: PreTrainedConfig,
    module: nn.Module,
    layer_type: str | None,
    method: Method,
    geometry: RotaryGeometry,
) -> dict[str, Any]:
    """`rope_parameters` of one layer type with which stock transformers makes the same frequencies.

    The method's own `rope_type` where that is true, else `longrope` with equal lists, which can hold any
    static vector. Length-dependent methods get a type that stock transformers refuses by name.
    """
    if method.length_dependent:
        refused = f"{method.name} (load it with ropepatch.load_pretrained)"
        return {"rope_type": refused, "rope_theta": geometry.base}
    frequencies = method.rotary(geometry)
    if not is_scaled(frequencies, geometry.inv_freq).any():
        return {"rope_type": "default", "rope_theta": geometry.base}
    for candidate in (method.native(geometry), as_longrope(method, geometry, frequencies)):
        if candidate is not None and reproduces(config, module, layer_type, candidate, frequencies):
            return candidate
    raise UnsupportedModelError(
        f"transformers' {type(module).__name__} reproduces {method.name!r} neither by its own rope"
        " types nor as longrope; the patch could not be saved"
    )


def as_longrope(
    method: Method, geometry: RotaryGeometry, frequencies: RotaryFrequencies
) -> dict[str, Any]:
    """Any static vector of frequencies as equal short and long divisors."""
    divisors = (geometry.inv_freq / frequencies.inv_freq).clamp(max=STOPPED).tolist()
    return {
        "rope_type": "longrope",
        "rope_theta": geometry.base,
        "factor": float(method.factor),
        "original_max_position_embeddings": geometry.original_max_position_embeddings,
        "short_factor": divisors,
        "long_factor": list(divisors),
        "attention_factor": float(frequencies.attention_factor),
    }


def reproduces(
    config: PreTrainedConfig,
    module: nn.Module,
    layer_type: str | None,
    candidate: dict[str, Any],
    frequencies: RotaryFrequencies,
) -> bool:
    """Whether the stock rotary class, built from the candidate, makes these frequencies."""
    trial = copy.deepcopy(config)
    for attribute, value in scaling_attributes(trial, {layer_type: candidate}).items():
        setattr(trial, attribute, value)
    built = type(module)(trial)
    made = frequency_buffer(built, layer_type).double()
    factor = float(getattr(built, prefixed("attention_scaling", layer_type)))
    # float32 arithmetic there; a pair that all but stands still may be off by its own size.
    return (
        made.shape == frequencies.inv_freq.shape
        and torch.allclose(made, frequencies.inv_freq, rtol=1e-5, atol=1e-20)
        and abs(factor - float(frequencies.attention_factor)) < 1e-9
    )


def scaling_attributes(
    config: PreTrainedConfig, changed: dict[str | None, dict[str, Any]]
) -> dict[str, Any]:
    """The config attributes with which some layer types are scaled anew.

    What is not about scaling (`partial_rotary_factor`, other layer types) stays.
    """
    parameters = copy.deepcopy(dict(config.rope_parameters))
    attributes: dict[str, Any] = {}
    for layer_type, scaling in changed.items():
        old = parameters_of(config, layer_type)
        kept = {key: old[key] for key in ("partial_rotary_factor",) if key in old}
        if layer_type is None:
            parameters = kept | copy.deepcopy(scaling)
        else:
            parameters[layer_type] = kept | copy.deepcopy(scaling)
        length = scaling.get("original_max_position_embeddings")
        if length is not None and hasattr(config, "original_max_position_embeddings"):
            # Phi-3's config overrides the entry in rope_parameters by this attribute.
            attributes["original_max_position_embeddings"] = length
    return attributes | {"rope_parameters": parameters}
