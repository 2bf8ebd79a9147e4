"""What a patch writes into a config, so that a saved model loads right elsewhere or fails loudly."""

import copy
import logging
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig

from ropepatch.adapters.plan import NOTICE
from ropepatch.adapters.pretrained import length_attribute
from ropepatch.adapters.rope_parameters import parameters_of
from ropepatch.adapters.rotary import frequency_buffer, prefixed
from ropepatch.attention.rotary import is_scaled
from ropepatch.errors import UnsupportedModelError
from ropepatch.methods import Method, RotaryFrequencies, RotaryGeometry

# transformers warns of every rope type that it does not know; ours are meant to be unknown to it.
logging.getLogger("transformers.modeling_rope_utils").addFilter(
    lambda record: NOTICE not in record.getMessage()
)

_STOPPED = 1e30  # divisor for a pair that does not turn: finite, so that the JSON stays standard


def native_parameters(
    config: PreTrainedConfig,
    module: nn.Module,
    layer_type: str | None,
    method: Method,
    geometry: RotaryGeometry,
) -> dict[str, Any]:
    """`rope_parameters` of one layer type with which stock transformers makes the same frequencies.

    The method's own `rope_type` where that is true, else `longrope` with equal lists, which can
    hold any static vector. Length-dependent methods get a type that stock transformers refuses by
    name.
    """
    if method.length_dependent:
        return _refused_parameters(config, layer_type, method, geometry)
    frequencies = method.rotary(geometry)
    if not is_scaled(frequencies, geometry.inv_freq).any():
        return {"rope_type": "default", "rope_theta": geometry.base}
    for candidate in (method.native(geometry), _as_longrope(method, geometry, frequencies)):
        if candidate and _reproduces(config, module, layer_type, candidate, frequencies):
            return candidate
    raise UnsupportedModelError(
        f"transformers' {type(module).__name__} reproduces {method.name!r} neither by its own rope "
        "types nor as longrope; the patch could not be saved"
    )


def _refused_parameters(
    config: PreTrainedConfig, layer_type: str | None, method: Method, geometry: RotaryGeometry
) -> dict[str, Any]:
    """Parameters that a config can be saved with, and with which no stock module can be built."""
    notice = f"{method.name} ({NOTICE})"
    by_type = {"rope_type": notice, "rope_theta": geometry.base}
    # Phi-3's config accepts known types only; there the base makes the stock arithmetic fail.
    by_base = {"rope_type": "default", "rope_theta": notice}
    return by_type if _is_valid(_trial_config(config, layer_type, by_type)) else by_base


def _as_longrope(
    method: Method, geometry: RotaryGeometry, frequencies: RotaryFrequencies
) -> dict[str, Any]:
    """Any static vector of frequencies as equal short and long divisors."""
    divisors = (geometry.inv_freq / frequencies.inv_freq).clamp(max=_STOPPED).tolist()
    return {
        "rope_type": "longrope",
        "rope_theta": geometry.base,
        "factor": float(method.factor),
        "original_max_position_embeddings": geometry.original_max_position_embeddings,
        "short_factor": divisors,
        "long_factor": list(divisors),
        "attention_factor": float(frequencies.attention_factor),
    }


def _reproduces(
    config: PreTrainedConfig,
    module: nn.Module,
    layer_type: str | None,
    candidate: dict[str, Any],
    frequencies: RotaryFrequencies,
) -> bool:
    """Whether the stock rotary class, built from the candidate, makes these frequencies."""
    trial = _trial_config(config, layer_type, candidate)
    if not _is_valid(trial):
        return False
    built = type(module)(trial)
    made = frequency_buffer(built, layer_type).double()
    factor = float(getattr(built, prefixed("attention_scaling", layer_type)))
    # float32 arithmetic there; a pair that all but stands still may be off by its own size.
    return (
        made.shape == frequencies.inv_freq.shape
        and torch.allclose(made, frequencies.inv_freq, rtol=1e-5, atol=1e-20)
        and abs(factor - float(frequencies.attention_factor)) < 1e-9
    )


def _trial_config(
    config: PreTrainedConfig, layer_type: str | None, candidate: dict[str, Any]
) -> PreTrainedConfig:
    """A copy of `config` with other parameters for one layer type."""
    trial = copy.deepcopy(config)
    for attribute, value in scaling_attributes(trial, {layer_type: candidate}).items():
        setattr(trial, attribute, value)
    trained, length = candidate.get("original_max_position_embeddings"), length_attribute(trial)
    if trained is not None and length is not None:
        # Or transformers warns of a factor that contradicts the length before the patch.
        setattr(trial, length, round(candidate["factor"] * trained))
    return trial


def _is_valid(config: PreTrainedConfig) -> bool:
    """Whether transformers would save the config: some architectures accept few rope types."""
    try:
        config.validate()
    except StrictDataclassError:
        return False
    return True


def scaling_attributes(
    config: PreTrainedConfig, changed: dict[str | None, dict[str, Any]]
) -> dict[str, Any]:
    """The config attributes with which some layer types are scaled anew.

    What is not about scaling (`partial_rotary_factor`, other layer types) stays.
    """
    parameters = copy.deepcopy(dict(config.rope_parameters))
    attributes: dict[str, Any] = {}
    for layer_type, scaling in changed.items():
        old = parameters_of(config.rope_parameters, layer_type)
        kept = {key: old[key] for key in ("partial_rotary_factor",) if key in old}
        if layer_type is None:
            parameters = kept | copy.deepcopy(scaling)
        else:
            parameters[layer_type] = kept | copy.deepcopy(scaling)
        length = scaling.get("original_max_position_embeddings")
        if length is not None and hasattr(config, "original_max_position_embeddings"):
            # Phi-3's config overrides the entry in rope_parameters by this attribute.
            attributes["original_max_position_embeddings"] = length
        if getattr(config, "head_dim", 0) is None:
            # Mixtral's config leaves it out, and transformers' yarn and longrope then fail to
            # compute.
            attributes["head_dim"] = config.hidden_size // config.num_attention_heads
    return attributes | {"rope_parameters": parameters}
