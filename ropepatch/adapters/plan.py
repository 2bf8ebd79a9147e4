"""From a model and a method to the list of changes that a patch makes."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ropepatch.adapters.generation import FixedScaleGenerate
from ropepatch.adapters.pretrained import text_config, text_configs
from ropepatch.adapters.rope_config import native_parameters, scaling_attributes
from ropepatch.adapters.rope_parameters import original_length, require_unscaled
from ropepatch.adapters.rotary import (
    RotaryModule,
    chosen_layer_types,
    find_rotary_modules,
    unscaled,
)
from ropepatch.attention.lengths import AnnounceCallLengths
from ropepatch.attention.rotary import ScaledRotary
from ropepatch.manifest import CONFIG_KEY, Manifest
from ropepatch.methods import Method
from ropepatch.surgery import AttributeChange, Change, HookChange


@dataclass(frozen=True)
class Plan:
    """Everything that a patch will change, decided before anything is changed."""

    method: Method
    original_max_position_embeddings: int
    max_position_embeddings: int
    layer_types: tuple[str, ...] | None
    sites: tuple[str, ...]
    changes: list[Change]

    def manifest(self, unpatched: dict[str, Any]) -> Manifest:
        """How to make the same patch again, and the config attributes before it."""
        return Manifest.of(
            self.method,
            original_max_position_embeddings=self.original_max_position_embeddings,
            max_position_embeddings=self.max_position_embeddings,
            layer_types=None if self.layer_types is None else list(self.layer_types),
            unpatched=unpatched,
        )


def plan_rotary(
    model: PreTrainedModel,
    method_for: Callable[[int], Method],
    *,
    original_max_position_embeddings: int | None = None,
    replace: bool = False,
    layer_types: Sequence[str] | None = None,
) -> Plan:
    """Plan the scaling of all rotary modules; `method_for` makes the method for a trained length.

    Raises UnsupportedModelError, AlreadyScaledError, MethodOptionError, LengthError or
    NothingPatchedError.
    """
    stock = find_rotary_modules(model)
    config = text_config(model)
    if not replace:
        require_unscaled(config)
    length = original_length(config, original_max_position_embeddings)
    method = method_for(length)
    plain = [unscaled(model, module, config) for module in stock]
    scaled = chosen_layer_types(plain, layer_types)
    replacements = [module.replacement(config, method, length, scaled) for module in plain]
    native = {
        layer_type: native_parameters(config, module.module, layer_type, method, site.geometry)
        for module, replacement in zip(plain, replacements, strict=True)
        for layer_type, site in replacement.sites.items()
        if layer_type in scaled
    }
    plan = Plan(
        method=method,
        original_max_position_embeddings=length,
        max_position_embeddings=round(method.factor * length),
        layer_types=tuple(sorted(name for name in scaled if name is not None)) or None,
        sites=tuple(module.path for module in plain),
        changes=[
            AttributeChange(module.parent, module.attribute, replacement)
            for module, replacement in zip(plain, replacements, strict=True)
        ],
    )
    plan.changes.extend(
        change for each in text_configs(model) for change in _config_changes(each, native, plan)
    )
    plan.changes.extend(_generation_changes(model, config, plan))
    if method.length_dependent:
        plan.changes.extend(_length_changes(model, plain, replacements))
    return plan


def _config_changes(
    config: PreTrainedConfig, native: dict[str | None, dict[str, Any]], plan: Plan
) -> list[Change]:
    """The config says what is live, how to load it, and what it was."""
    after = scaling_attributes(config, native)
    after["max_position_embeddings"] = plan.max_position_embeddings
    unpatched = {name: copy.deepcopy(getattr(config, name)) for name in after}
    after[CONFIG_KEY] = plan.manifest(unpatched).to_json()
    # Some configs hold an attribute under another name than the one by which it is asked for.
    held = {name: type(config).attribute_map.get(name, name) for name in after}
    return [AttributeChange(config, held[name], value) for name, value in after.items()]


def _generation_changes(
    model: PreTrainedModel, config: PreTrainedConfig, plan: Plan
) -> list[Change]:
    """A generation config that ends at the old limit ends at the new one."""
    generation = getattr(model, "generation_config", None)
    if generation is None or generation.max_length != config.max_position_embeddings:
        return []
    return [AttributeChange(generation, "max_length", plan.max_position_embeddings)]


def _length_changes(
    model: PreTrainedModel, modules: list[RotaryModule], replacements: list[ScaledRotary]
) -> list[Change]:
    """Row lengths reach the rotary modules from forward calls and from `generate`."""
    changes: list[Change] = [
        HookChange(module.parent, AnnounceCallLengths(replacement))
        for module, replacement in zip(modules, replacements, strict=True)
    ]
    if model.can_generate():
        changes.append(AttributeChange(model, "generate", FixedScaleGenerate(model, replacements)))
    return changes
