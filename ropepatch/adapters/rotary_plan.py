"""From a rotary model and a method to the list of changes that a patch makes."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from ropepatch.adapters.caches import ScaleRows
from ropepatch.adapters.plan import config_changes, generation_changes, request_changes
from ropepatch.adapters.pretrained import text_config, text_configs
from ropepatch.adapters.rope_config import native_parameters, scaling_attributes
from ropepatch.adapters.rope_parameters import original_length, require_unscaled
from ropepatch.adapters.rotary import chosen_layer_types, find_rotary_modules, unscaled
from ropepatch.manifest import Manifest, PatchInfo
from ropepatch.methods import Method
from ropepatch.surgery import AttributeChange, Change, HookChange, PatchRecord


def plan_rotary(
    model: PreTrainedModel,
    method_for: Callable[[int], Method],
    original_max_position_embeddings: int | None,
    replace: bool,
    layer_types: Sequence[str] | None,
) -> PatchRecord:
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
    pairs = [(each, each.replacement(config, method, length, scaled)) for each in plain]
    native = {
        layer_type: native_parameters(config, module.module, layer_type, method, site.geometry)
        for module, new in pairs
        for layer_type, site in new.sites.items()
        if layer_type in scaled
    }
    manifest = Manifest.of(
        method, length, layer_types=sorted(name for name in scaled if name is not None) or None
    )
    changes: list[Change] = [
        AttributeChange(module.parent, module.attribute, new) for module, new in pairs
    ]
    for each in text_configs(model):
        after = scaling_attributes(each, native)
        after["max_position_embeddings"] = manifest.max_position_embeddings
        changes += config_changes(each, after, manifest)
    changes += generation_changes(model, "max_position_embeddings", manifest)
    if method.length_dependent:
        changes += [HookChange(module.parent, ScaleRows(new)) for module, new in pairs]
        changes += request_changes(model, [new for _, new in pairs])
    sites = tuple(module.path for module in plain)
    return PatchRecord(changes, about=PatchInfo(**vars(manifest), sites=sites))
