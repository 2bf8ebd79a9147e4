"""Rotary modules: found by structure, understood by probing, never by a list of model names.

transformers builds cos and sin in one module per decoder, which holds `inv_freq` buffers and a
`rope_type`. Models with several layer types hold one `{layer_type}_inv_freq` buffer each and take
the type as an argument.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ropepatch.adapters.pretrained import text_config, text_modules
from ropepatch.adapters.rope_parameters import parameters_of, scaling_types
from ropepatch.attention.rotary import LAYOUTS, Layout, RotarySite, ScaledRotary
from ropepatch.errors import MethodOptionError, NothingPatchedError, UnsupportedModelError
from ropepatch.methods import Method, RotaryGeometry

_DEFAULT_LAYER_TYPE = "full_attention"  # sliding-window layers never see beyond their window


@dataclass
class RotaryModule:
    """A stock rotary module: who holds it under which name, and how it arranges its channels."""

    path: str
    parent: nn.Module
    attribute: str
    module: nn.Module
    layer_types: tuple[str | None, ...]
    layout: Layout

    def geometry(
        self, config: PreTrainedConfig, layer_type: str | None, length: int
    ) -> RotaryGeometry:
        """What a method is told. Raises UnsupportedModelError when frequencies are not base^(−2i/dim)."""
        geometry = stock_geometry(self, layer_type, config.rope_parameters, length)
        if not rounds_to(frequency_buffer(self.module, layer_type), geometry):
            raise UnsupportedModelError(
                f"the frequencies at {self.path!r} are not {geometry.base:g}^(-2i/{geometry.dim}) as "
                "the config says; nothing was patched"
            )
        return geometry

    def replacement(
        self, config: PreTrainedConfig, method: Method, length: int, scaled: set[str | None]
    ) -> ScaledRotary:
        """The patched module, in which only the layer types `scaled` are."""
        sites = []
        for layer_type in self.layer_types:
            geometry = self.geometry(config, layer_type, length)
            stock = frequency_buffer(self.module, layer_type)
            chosen = method if layer_type in scaled else None
            site = RotarySite.plan(layer_type, geometry, chosen, stock)
            site.to(stock.device)
            sites.append(site)
        return ScaledRotary(self.module, self.layout, sites).train(self.module.training)


def prefixed(name: str, layer_type: str | None) -> str:
    """The stock module's name of an attribute that it keeps for each layer type."""
    return name if layer_type is None else f"{layer_type}_{name}"


def frequency_buffer(module: nn.Module, layer_type: str | None) -> Tensor:
    """The stock frequencies of one layer type. (dim/2,)"""
    return module.get_buffer(prefixed("inv_freq", layer_type))


@torch.no_grad()
def stock_frequencies(
    module: nn.Module, layer_type: str | None, length: int
) -> tuple[Tensor, float]:
    """What a stock module makes of `length` tokens: frequencies, float64 (dim/2,), and attention factor."""
    module = copy.deepcopy(module)  # a call changes it, where its scaling depends on the length
    x = torch.zeros(1, device=frequency_buffer(module, layer_type).device)
    arguments = () if layer_type is None else (layer_type,)
    module(x[None, None], (x.long() + length - 1)[None], *arguments)
    factor = getattr(module, prefixed("attention_scaling", layer_type), 1.0)
    return frequency_buffer(module, layer_type).double().cpu(), float(factor)


def find_rotary_modules(model: PreTrainedModel) -> list[RotaryModule]:
    """Every rotary module of the text decoder.

    Raises UnsupportedModelError, saying what was found, unless each of them is understood.
    """
    if getattr(text_config(model), "alibi", False):
        # Falcon builds a rotary module in any case, and ignores it when its config asks for ALiBi.
        raise UnsupportedModelError(
            f"{type(model).__name__} takes its positions from ALiBi biases (alibi=True in its "
            "config), but has no attention module of BLOOM, MPT or Falcon"
        )
    modules = text_modules(model)
    found = [
        _understand(name, modules[name.rpartition(".")[0]], module)
        for name, module in modules.items()
        if _rotates(module)
    ]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {text_config(model).model_type!r}) has no rotary "
            f"module; {_what_it_has(modules)}. ropepatch scales modules that hold `inv_freq`, "
            "and the biases of BLOOM, MPT, Falcon and T5"
        )
    return found


def has_rotary_modules(model: PreTrainedModel) -> bool:
    """Whether any module of the text decoder rotates, understood or not."""
    return any(map(_rotates, text_modules(model).values()))


def _rotates(module: nn.Module) -> bool:
    return any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False))


def _what_it_has(modules: dict[str, nn.Module]) -> str:
    """What else encodes positions, as far as names tell, for an error message."""
    hints = [
        name
        for name in modules
        if any(
            sign in name.rpartition(".")[2]
            for sign in ("wpe", "position", "relative_attention_bias", "embed_pos", "alibi")
        )
    ]
    return (
        f"found {', '.join(hints[:3])}" if hints else "found no module named after positions either"
    )


def _understand(path: str, parent: nn.Module, module: nn.Module) -> RotaryModule:
    """Read a rotary module's layer types and probe its layout."""
    buffers = [name for name, _ in module.named_buffers(recurse=False)]
    frequencies = [
        name for name in buffers if name.endswith("inv_freq") and "original_" not in name
    ]
    layer_types = tuple(
        None if name == "inv_freq" else name.removesuffix("_inv_freq") for name in frequencies
    )
    where = f"{type(module).__name__} at {path!r}"
    if not hasattr(module, "rope_type") or (None in layer_types and len(layer_types) > 1):
        raise UnsupportedModelError(
            f"{where} is not understood: buffers {', '.join(buffers)}, rope_type "
            f"{getattr(module, 'rope_type', 'missing')!r}; nothing was patched"
        )
    if getattr(module, "mrope_section", None):
        raise UnsupportedModelError(
            f"{where} rotates by several positions for each token (mrope_section "
            f"{module.mrope_section}); nothing was patched"
        )
    if isinstance(parent, nn.ModuleList):
        raise UnsupportedModelError(
            f"{where} is one of a list, and how layers choose among them is not understood; "
            "nothing was patched"
        )
    if any(buffer.is_meta for buffer in module.buffers()):
        raise UnsupportedModelError(
            f"{where} is on the meta device and has no values; load the weights, then patch"
        )
    layouts = {_probe_layout(where, module, layer_type) for layer_type in layer_types}
    return RotaryModule(
        path, parent, path.rpartition(".")[2], module, layer_types, layout=layouts.pop()
    )


@torch.no_grad()
def _probe_layout(where: str, module: nn.Module, layer_type: str | None) -> Layout:
    """How the module spreads angles over channels, from what it answers to a few positions."""
    inv_freq = frequency_buffer(module, layer_type).float()
    # Near positions, beyond which transformers' own dynamic scaling would start to change the
    # module.
    position_ids = torch.tensor([[0, 1, 2, 3, 7]], device=inv_freq.device)
    arguments = () if layer_type is None else (layer_type,)
    factor = getattr(module, prefixed("attention_scaling", layer_type), 1.0)
    x = torch.zeros(1, 5, 1, device=inv_freq.device)
    try:
        answer = module(x, position_ids, *arguments)
    except Exception as error:
        raise UnsupportedModelError(
            f"{where} does not take (x, position_ids of shape (batch, n)): {error}; nothing was patched"
        ) from error
    angles = position_ids[..., None] * inv_freq
    for layout, spread in LAYOUTS.items():
        expected = (spread(angles.cos()) * factor, spread(angles.sin()) * factor)
        if (
            isinstance(answer, tuple)
            and len(answer) == 2
            and all(
                got.shape == want.shape
                and got.dtype == want.dtype
                and torch.allclose(got, want, atol=1e-4)
                for got, want in zip(answer, expected, strict=True)
            )
        ):
            return layout
    parts = answer if isinstance(answer, tuple) else (answer,)
    shapes = [tuple(getattr(part, "shape", ())) for part in parts]
    raise UnsupportedModelError(
        f"{where} returns something else than cos and sin of position × inv_freq: "
        f"{type(answer).__name__} {shapes} for 5 positions and {len(inv_freq)} pairs; nothing was "
        "patched"
    )


def unscaled(model: PreTrainedModel, found: RotaryModule, config: PreTrainedConfig) -> RotaryModule:
    """The module without the config's own scaling: itself, or rebuilt by transformers."""
    if not scaling_types(config):
        return found
    if any(
        parameters_of(config.rope_parameters, name).get("mscale_all_dim")
        for name in found.layer_types
    ):
        raise UnsupportedModelError(
            f"{type(model).__name__} has mscale_all_dim built into its softmax scale; its scaling "
            "cannot be replaced"
        )
    plain = copy.deepcopy(config)
    for name in found.layer_types:
        parameters = parameters_of(plain.rope_parameters, name)
        for key in set(parameters) - {"rope_theta", "partial_rotary_factor"}:
            del parameters[key]
        parameters["rope_type"] = "default"
    device = frequency_buffer(found.module, found.layer_types[0]).device
    rebuilt = type(found.module)(plain).to(device)
    return _understand(found.path, found.parent, rebuilt)


def stock_geometry(
    found: RotaryModule, layer_type: str | None, rope_parameters: dict[str, Any], length: int
) -> RotaryGeometry:
    """The geometry of a stock module whose config has (or had) these `rope_parameters`."""
    return RotaryGeometry(
        dim=2 * frequency_buffer(found.module, layer_type).numel(),
        base=float(parameters_of(rope_parameters, layer_type)["rope_theta"]),
        original_max_position_embeddings=length,
    )


def rounds_to(inv_freq: Tensor, geometry: RotaryGeometry) -> bool:
    """Whether stock frequencies are those of the geometry, but for rounding."""
    # A cast to bfloat16 leaves 8 bits; the exact values come from the config.
    tolerance = 1e-5 if inv_freq.dtype in (torch.float32, torch.float64) else 1e-2
    return torch.allclose(inv_freq.double().cpu(), geometry.inv_freq, rtol=tolerance, atol=0)


def chosen_layer_types(found: list[RotaryModule], asked: Sequence[str] | None) -> set[str | None]:
    """Which layer types are scaled: the full-attention ones unless others are asked for.

    Raises MethodOptionError for types that the model does not have, NothingPatchedError for none.
    """
    present = {name for module in found for name in module.layer_types}
    have = ", ".join(sorted(str(name) for name in present if name)) or "one for all layers"
    if isinstance(asked, str):
        raise MethodOptionError(
            f"layer_types is {asked!r}; allowed: a list of types; there are: {have}"
        )
    if asked is None:
        chosen = present if len(present) == 1 else present & {None, _DEFAULT_LAYER_TYPE}
    else:
        chosen = set(asked)
    if unknown := chosen - present:
        raise MethodOptionError(
            f"layer_types has {sorted(map(str, unknown))}, but the model's rotary types are: {have}"
        )
    if not chosen:
        raise NothingPatchedError(
            f"no layer type is to be scaled; the model's rotary types are: {have}; name those to "
            "scale with layer_types="
        )
    return chosen
