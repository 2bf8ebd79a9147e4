"""From a rotary model, or one with a table of positions, to the changes of a patch that replaces them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.attention_sites import AttentionModule, computes_itself, find_attention
from ropepatch.adapters.bias_plan import checked_kernel
from ropepatch.adapters.biased import forward_attribute
from ropepatch.adapters.given_positions import position_checks
from ropepatch.adapters.interface import IMPLEMENTATION, NAME, Site, site_change
from ropepatch.adapters.placing import (
    AddVectors,
    RequireLive,
    RequireRoom,
    bias_changes,
    table_changes,
)
from ropepatch.adapters.plan import (
    checked_length,
    generation_changes,
    mask_changes,
    refusing_changes,
)
from ropepatch.adapters.pretrained import length_attribute, text_config, text_configs
from ropepatch.adapters.profile import checked_text, fit_to, measure_modules
from ropepatch.adapters.rope_parameters import original_length, require_unscaled
from ropepatch.adapters.rotary import RotaryModule, find_rotary_modules, unscaled
from ropepatch.adapters.tables import PositionTable, find_tables, table_forward
from ropepatch.attention.score_bias import PlacedBias
from ropepatch.errors import UnsupportedModelError
from ropepatch.manifest import Manifest, PatchInfo
from ropepatch.methods import Method
from ropepatch.methods.replacement import Replacement, ScoreBiasMethod, TableMethod
from ropepatch.methods.xpos import XPos
from ropepatch.surgery import AttributeChange, Change, HookChange, PatchRecord, UnusedParameters

MethodFor = Callable[[int], Method]


def needs_attention(model: PreTrainedModel, kind: type[Method]) -> bool:
    """Whether attention of ours is put into a rotary model, or one with a table."""
    # GPT-Neo's own attention ends with its table, whatever makes the positions.
    return issubclass(kind, ScoreBiasMethod | XPos) or computes_itself(model)


def plan_rotary_replacement(
    model: PreTrainedModel,
    method_for: MethodFor,
    original_max_position_embeddings: int | None,
    replace: bool,
    attention: str,
    text: Tensor | None,
) -> PatchRecord:
    """Plan to put another encoding in the place of rotation; `method_for` makes it for a trained length.

    A bias is fitted to the scores of `text`, if given. Raises UnsupportedModelError, AlreadyScaledError,
    MethodOptionError, LengthError, or DataError for a text that is none.
    """
    found = find_rotary_modules(model)
    config = text_config(model)
    if not replace:
        require_unscaled(config)
    length = original_length(config, original_max_position_embeddings)
    method = method_for(length)
    changes: list[Change] = []
    for module in (unscaled(model, each, config) for each in found):
        new = module.replacement(config, method, length, set(module.layer_types))
        changes.append(AttributeChange(module.parent, module.attribute, new))
    stack = found[0].parent
    if isinstance(method, TableMethod):
        changes += table_changes(stack, method, config.hidden_size, length)
        changes.append(HookChange(stack, AddVectors(method.name)))
    if needs_attention(model, type(method)):
        changes += _attention_changes(model, stack, found, method, length, attention, text)
    changes += position_checks(stack, method)
    manifest = Manifest.of(method, length)
    after = {"max_position_embeddings": manifest.max_position_embeddings}
    changes += refusing_changes(model, after, manifest)
    changes += generation_changes(model, "max_position_embeddings", manifest)
    sites = tuple(each.path for each in found)
    return PatchRecord(changes, about=PatchInfo(**vars(manifest), sites=sites))


def _decays(
    modules: list[AttentionModule],
    method: Method,
    found: list[RotaryModule],
    config: Any,
    length: int,
) -> list[Tensor | None]:
    """xPos's decay of every channel, for every attention module; None for other methods."""
    if not isinstance(method, XPos):
        return [None] * len(modules)
    if not all(each.causal for each in modules):
        raise UnsupportedModelError(
            f"{modules[0].path!r} sees the future, towards which {method.name!r} would make scores grow; it "
            "is for causal models only; nothing was patched"
        )
    geometry = found[0].geometry(config, found[0].layer_types[0], length)
    by_pair = torch.cat([method.log_decay(geometry), torch.zeros(1, dtype=torch.float64)])
    for each in modules:
        if not bool(((each.pairs >= -1) & (each.pairs < len(by_pair) - 1)).all()):
            raise UnsupportedModelError(
                f"which channels of {each.path!r} are rotated together could not be told, so "
                f"{method.name!r} cannot scale them; nothing was patched"
            )
    return [by_pair[each.pairs] if each.rotates else None for each in modules]


def _attention_changes(
    model: PreTrainedModel,
    stack: nn.Module,
    found: list[RotaryModule],
    method: Method,
    length: int,
    attention: str,
    text: Tensor | None,
) -> list[Change]:
    """Attention of ours in every module, with the bias of the method where there were positions."""
    kernel = checked_kernel(attention, next(model.parameters()).device.type)
    modules = find_attention(model, found, repr(method.name))
    decays = _decays(modules, method, found, text_config(model), length)
    heads, causal = [each.heads for each in modules], modules[0].causal
    fit = None
    if text is not None:
        fit = fit_to(measure_modules(model, modules, checked_text(model, text, length)), causal)
    changes = bias_changes(stack, method, heads, causal, length, fit)
    rotary = any(each.rotates for each in modules)
    for layer, (each, decay) in enumerate(zip(modules, decays, strict=True)):
        own = method if each.rotates or not rotary else None
        site = Site(PlacedBias(stack, own, each.heads, layer), kernel, each.causal, decay)
        changes.append(site_change(each.module, site))
    changes += [AttributeChange(config, IMPLEMENTATION, NAME) for config in text_configs(model)]
    return [*changes, *mask_changes(model), HookChange(stack, RequireLive())]


def plan_absolute(
    model: PreTrainedModel,
    method_for: MethodFor,
    original_max_position_embeddings: int | None,
    attention: str,
    text: Tensor | None,
) -> PatchRecord:
    """Plan to interpolate, or to replace, the table of positions of GPT-2, BERT and their like.

    Raises UnsupportedModelError, MethodOptionError, LengthError, or DataError for a text that is none.
    """
    tables = find_tables(model)
    given, rows = original_max_position_embeddings, min(each.rows for each in tables)
    length = rows if given is None else checked_length(given)
    method = method_for(length)
    manifest = Manifest.of(method, length, mechanism="absolute")
    longest = manifest.max_position_embeddings
    stack = _stack_of(model, tables[0])
    changes: list[Change] = []
    if isinstance(method, TableMethod):
        changes += table_changes(stack, method, tables[0].module.embedding_dim, length)
    limited = False
    for table in tables:
        forward = table_forward(table, method, stack)
        changes.append(AttributeChange(table.module, forward_attribute(table.module), forward))
        if isinstance(method, Replacement):
            changes.append(UnusedParameters(table.module))
        buffers = table.buffers(longest)
        limited = limited or bool(buffers)
        changes += [AttributeChange(table.parent, name, new) for name, new in buffers.items()]
    if needs_attention(model, type(method)):
        changes += _attention_changes(model, stack, [], method, length, attention, text)
    changes += position_checks(stack, method)
    if limited:
        changes.append(HookChange(stack, RequireRoom(longest)))
    config = text_config(model)
    attribute = length_attribute(config)
    assert attribute is not None
    reserved = int(getattr(config, attribute)) - rows  # RoBERTa's config counts all rows
    changes += refusing_changes(model, {attribute: longest + reserved}, manifest)
    changes += generation_changes(model, attribute, manifest)
    paths = tuple(each.path for each in tables)
    return PatchRecord(changes, about=PatchInfo(**vars(manifest), sites=paths))


def _stack_of(model: PreTrainedModel, table: PositionTable) -> PreTrainedModel:
    """The innermost transformers model that holds a table: it is called with the tokens."""
    parts = table.path.split(".")
    inner = (model.get_submodule(".".join(parts[:end])) for end in range(len(parts), -1, -1))
    return next(module for module in inner if isinstance(module, PreTrainedModel))
