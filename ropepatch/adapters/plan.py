"""Parts of every plan: what a patch will change, decided before anything is changed."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ropepatch.adapters.generation import FixedScaleGenerate, refuse_continuous_batching
from ropepatch.adapters.masks import padding_mask_for_generate
from ropepatch.adapters.pretrained import text_config, text_configs
from ropepatch.errors import LengthError
from ropepatch.manifest import CONFIG_KEY, Manifest
from ropepatch.surgery import AttributeChange, Change

NOTICE = "load it with ropepatch.load_pretrained"  #: in whatever plain transformers is to refuse
# Entries of a saved config that transformers hands to the model, which refuses what it does not know.
# The second is there for those who choose the first when they load.
REFUSALS = ("attn_implementation", "experts_implementation")


def checked_length(given: int) -> int:
    """A length that a user gave. Raises LengthError for what cannot be one."""
    if type(given) is not int or given < 1:
        raise LengthError(
            f"original_max_position_embeddings is {given!r}; allowed: a whole number of tokens, at "
            "least 1"
        )
    return given


def config_changes(
    config: PreTrainedConfig, after: dict[str, Any], manifest: Manifest
) -> list[Change]:
    """The config says what is live, how to load it, and what it was."""
    unpatched = {name: copy.deepcopy(getattr(config, name)) for name in after}
    after = {**after, CONFIG_KEY: replace(manifest, unpatched=unpatched).to_json()}
    # Some configs hold an attribute under another name than the one by which it is asked for.
    held = {name: type(config).attribute_map.get(name, name) for name in after}
    return [AttributeChange(config, held[name], value) for name, value in after.items()]


def refusing_changes(
    model: PreTrainedModel, after: dict[str, Any], manifest: Manifest
) -> list[Change]:
    """Every config of the model says what is live, and makes plain transformers refuse to load it."""
    notice = f"{manifest.method} ({NOTICE})"
    changes: list[Change] = []
    for config in text_configs(model):
        changes += config_changes(config, after, manifest)
        changes += [AttributeChange(config, refusal, notice) for refusal in REFUSALS]
    return changes


def mask_changes(model: PreTrainedModel) -> list[Change]:
    """`generate` hands on the padding mask as it is: ours are made, compact, within the forward."""
    if not model.can_generate():
        return []
    return [AttributeChange(model, "create_masks_for_generate", padding_mask_for_generate)]


def generation_changes(
    model: PreTrainedModel, length_attribute: str | None, manifest: Manifest
) -> list[Change]:
    """A generation config that ends at the old limit ends at the new one."""
    generation = getattr(model, "generation_config", None)
    limit = length_attribute and getattr(text_config(model), length_attribute)
    if generation is None or limit is None or generation.max_length != limit:
        return []
    return [AttributeChange(generation, "max_length", manifest.max_position_embeddings)]


def request_changes(model: PreTrainedModel, sites: Sequence[object]) -> list[Change]:
    """`generate` fixes the scale of every row for the whole request."""
    if not model.can_generate():
        return []
    return [
        AttributeChange(model, "generate", FixedScaleGenerate(model, sites)),
        AttributeChange(model, "init_continuous_batching", refuse_continuous_batching),
    ]
