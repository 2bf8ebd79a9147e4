"""What there is to see of a model's encoding, as it is or as a method would make it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.bias_stacks import BiasStack, each_once, find_bias_stacks
from ropepatch.adapters.biased import BiasedForward, forward_attribute
from ropepatch.adapters.pretrained import (
    is_causal,
    pretrained_model,
    text_config,
    text_modules,
    trained_length,
)
from ropepatch.adapters.rope_parameters import original_length, parameters_of
from ropepatch.adapters.rotary import (
    chosen_layer_types,
    find_rotary_modules,
    stock_frequencies,
    stock_geometry,
)
from ropepatch.adapters.tables import PositionTable, find_tables
from ropepatch.attention.position_modules import BiasModule, TableModule
from ropepatch.attention.score_bias import AlibiBias, BucketBias, ScoreBias
from ropepatch.description import require_length
from ropepatch.manifest import Manifest
from ropepatch.methods import Method, RotaryGeometry
from ropepatch.methods.replacement import Replacement
from ropepatch.methods.xpos import XPos
from ropepatch.patch import mechanism_of
from ropepatch.placed_parameters import placed_modules
from ropepatch.portraits import (
    UNSCALED,
    BiasPortrait,
    Portrait,
    RotaryPortrait,
    Sizes,
    TablePortrait,
    caption,
    portrait,
    portrait_class,
    rotary_portrait,
)
from ropepatch.positions import interpolate_rows

MethodFor = Callable[[int], Method]  #: for a trained length


def model_portraits(
    model: nn.Module, method_for: MethodFor | None = None, given_length: int | None = None
) -> list[Portrait]:
    """Every encoding of `model`: by the method, or else by its patch, or else as its config has it.

    `given_length` is what it was trained to, where its config does not say. Raises
    UnsupportedMechanismError for a method that does not serve the model or cannot be shown,
    ConfigError or LengthError where the trained length is not known.
    """
    root = pretrained_model(model)
    mechanism, manifest = mechanism_of(root), Manifest.in_config(text_config(root))
    length = _length(root, mechanism, given_length)
    if method_for is not None:
        method: Method | None = method_for(length)
    else:
        method = None if manifest is None or manifest.method is None else manifest.make()
    if method is not None and mechanism not in method.mechanisms():
        raise method.unsupported(mechanism)
    if isinstance(method, Replacement):
        if method_for is None:
            return _placed(root, method, length)
        return _replaced(root, method, length)
    if mechanism == "absolute":
        return [_table(table, method, length) for table in find_tables(root)]
    if mechanism == "rotary":
        return _rotary(root, manifest, method, length)
    return _biased(root, method, length)


def _length(model: PreTrainedModel, mechanism: str, given: int | None) -> int:
    config = text_config(model)
    patched = Manifest.in_config(config) is not None
    if mechanism == "rotary" and not patched:
        return original_length(config, given)  # which a config that scales may hold apart
    if mechanism == "absolute" and not patched and given is None:
        return min(table.rows for table in find_tables(model))  # RoBERTa's config counts two more
    return require_length(model, given)


def _replaced(model: PreTrainedModel, method: Replacement, length: int) -> list[Portrait]:
    """What would stand in the place of the model's encoding: one of each stack that differs."""
    config = text_config(model)
    rotary = portrait_class(method) is RotaryPortrait
    geometry = _geometries(model, None, length)[0][1] if rotary else None
    sizes = Sizes(
        original_max_position_embeddings=length,
        dim=geometry.dim if geometry else config.hidden_size,
        base=geometry.base if geometry else 10000.0,
        num_heads=config.num_attention_heads,
    )
    stacks = find_bias_stacks(model)
    if not stacks:
        causal = all(is_causal(each, config) for each in text_modules(model).values())
        return [portrait(method, replace(sizes, bidirectional=not causal))]
    return [
        portrait(
            method,
            replace(sizes, bidirectional=not stack.causal),
            part=stack.part if len(stacks) > 1 else "",
        )
        for stack in stacks
    ]


def _placed(model: PreTrainedModel, method: Replacement, length: int) -> list[Portrait]:
    """What a patch has put in, as it is by now; nothing of a method that puts in nothing."""
    if isinstance(method, XPos):
        return _replaced(model, method, length)
    portraits: list[Portrait] = []
    for path, module in placed_modules(model).items():
        part = path.rpartition(".")[0] if model.config.is_encoder_decoder else ""
        if isinstance(module, TableModule):
            portraits.append(
                TablePortrait(
                    **caption(method, length, part),
                    vectors=partial(_vectors, module),
                    dim=module.geometry.dim,
                )
            )
        elif isinstance(module, BiasModule):
            layers = module.geometry.num_layers if module.method.per_layer else 1
            layer = f"layer 1 of {layers}" if layers > 1 else ""
            part = ", ".join(filter(None, (part, layer)))
            portraits.append(
                BiasPortrait(
                    **caption(method, length, part),
                    bias=partial(_placed_curve, module),
                    bidirectional=module.geometry.bidirectional,
                )
            )
    return portraits


@torch.no_grad()
def _placed_curve(module: BiasModule, distances: Tensor) -> Tensor:
    """The bias of the first layer. (n,) → (heads, n)"""
    made: Tensor = module(distances.to(next(module.parameters(), distances).device), 0)
    return made.double().cpu()


@torch.no_grad()
def _vectors(module: TableModule, positions: Tensor) -> Tensor:
    made: Tensor = module(positions.to(next(module.parameters(), positions).device))
    return made.double().cpu()


def _table(table: PositionTable, method: Method | None, length: int) -> TablePortrait:
    """A learned table, as it is or as a method reads it."""
    return TablePortrait(
        **caption(method, length),
        vectors=partial(_rows, table, method),
        dim=table.module.embedding_dim,
    )


@torch.no_grad()
def _rows(table: PositionTable, method: Method | None, positions: Tensor) -> Tensor:
    places = positions if method is None else method.absolute(positions)
    return interpolate_rows(table.module.weight.cpu(), places + table.offset)


def _geometries(
    model: PreTrainedModel, manifest: Manifest | None, length: int
) -> list[tuple[str | None, RotaryGeometry, nn.Module]]:
    """Layer type, geometry as trained, and stock module, of each layer type that is scaled."""
    config, found = text_config(model), find_rotary_modules(model)
    asked = None if manifest is None else manifest.layer_types
    chosen = chosen_layer_types(found, asked)
    before = config.rope_parameters if manifest is None else manifest.unpatched["rope_parameters"]
    return [
        (layer_type, stock_geometry(module, layer_type, before, length), module.module)
        for module in found
        for layer_type in module.layer_types
        if layer_type in chosen
    ]


def _rotary(
    model: PreTrainedModel, manifest: Manifest | None, method: Method | None, length: int
) -> list[Portrait]:
    config = text_config(model)
    portraits: list[Portrait] = []
    for layer_type, geometry, module in _geometries(model, manifest, length):
        part = layer_type or ""
        if method is not None:
            portraits.append(rotary_portrait(method, geometry, part))
            continue
        parameters = parameters_of(config.rope_parameters, layer_type)
        target = max(length, trained_length(model) or length)
        inv_freq, attention_factor = stock_frequencies(module, layer_type, target)
        portraits.append(
            RotaryPortrait(
                method=_scaling(parameters.get("rope_type", "default")),
                part=part,
                length=length,
                target=target,
                geometry=geometry,
                factor=float(parameters.get("factor") or target / length),
                inv_freq=inv_freq,
                attention_factor=attention_factor,
            )
        )
    return portraits


def _scaling(rope_type: str) -> str:
    return UNSCALED if rope_type == "default" else f"{rope_type}, by the config"


def _biased(model: PreTrainedModel, method: Method | None, length: int) -> list[Portrait]:
    portraits: list[Portrait] = []
    for stack in find_bias_stacks(model):
        biases = _live(stack, method) or each_once(stack.biases(method, length).values())
        layer = f", layer 1 of {len(biases)}" if len(biases) > 1 else ""
        part = "" if stack.mechanism == "alibi" else f"{stack.part}{layer}"
        said = caption(method, length, part)
        portraits.append(
            BiasPortrait(
                **said,
                bias=partial(_curve, biases[0], said["target"]),
                bidirectional=not stack.causal,
            )
        )
    return portraits


def _live(stack: BiasStack, method: Method | None) -> list[ScoreBias]:
    """What a patch has put in, which knows the geometry before it, with the method to be shown."""
    forwards = [vars(each.module).get(forward_attribute(each.module)) for each in stack.attentions]
    found = {
        id(forward.bias): forward.bias
        for forward in forwards
        if isinstance(forward, BiasedForward)
        if isinstance(forward.bias, AlibiBias | BucketBias)
    }
    return [replace(bias, method=method) for bias in found.values()]


@torch.no_grad()
def _curve(bias: ScoreBias, target: int, distances: Tensor) -> Tensor:
    """Bias in rows of the target length. (n,) → (heads, n)"""
    return bias.curve(distances, torch.tensor([target]))[0].double().cpu()
