"""What a config says of its rotary positions, for all layers or for each layer type."""

from typing import Any

from transformers import PreTrainedConfig

from ropepatch.adapters.plan import checked_length
from ropepatch.errors import AlreadyScaledError, LengthError


def rope_types(config: PreTrainedConfig) -> dict[str | None, str]:
    """The config's `rope_type` for every layer type that rotates; None stands for all layers."""
    parameters = config.rope_parameters or {}
    nested = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    if not nested:
        return {None: parameters.get("rope_type", "default")}
    return {name: value.get("rope_type", "default") for name, value in nested.items()}


def scaling_types(config: PreTrainedConfig) -> dict[str | None, str]:
    """Those of `rope_types` that scale; empty for a checkpoint as it was trained."""
    return {name: kind for name, kind in rope_types(config).items() if kind != "default"}


def parameters_of(rope_parameters: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    """The part of a config's `rope_parameters` that holds for one layer type."""
    return rope_parameters if layer_type is None else rope_parameters[layer_type]


def original_length(config: PreTrainedConfig, given: int | None) -> int:
    """Tokens that the checkpoint was trained to: as given, or as its config tells.

    Raises LengthError for what cannot be a length, and when the config does not tell.
    """
    if given is not None:
        return checked_length(given)
    scaled = scaling_types(config)
    # transformers' `dynamic` scales beyond max_position_embeddings, so that stays the original
    # length.
    if set(scaled.values()) <= {"dynamic"}:
        return int(config.max_position_embeddings)
    name, kind = next(iter(scaled.items()))
    length = parameters_of(config.rope_parameters, name).get("original_max_position_embeddings")
    if length is None:
        raise LengthError(
            f"the config scales its positions ({kind!r}) but does not say from which length; give "
            "original_max_position_embeddings="
        )
    return int(length)


def require_unscaled(config: PreTrainedConfig) -> None:
    """Raise AlreadyScaledError when the config scales its positions by itself."""
    scaled = scaling_types(config)
    if scaled:
        kinds = ", ".join(sorted(set(scaled.values())))
        raise AlreadyScaledError(
            f"this checkpoint's config already scales its positions (rope_type {kinds}); pass "
            "replace=True (--replace; patch.replace=true in a recipe) to put the new method in its place"
        )
