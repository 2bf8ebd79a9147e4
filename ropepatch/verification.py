"""Proof that a patch is live: what should run is recomputed, compared with what runs, and probed."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from ropepatch.adapters.active_positions import scaled_modules, score_biases
from ropepatch.adapters.bias_stacks import find_bias_stacks
from ropepatch.adapters.pretrained import pretrained_model, text_config, text_configs
from ropepatch.adapters.rotary import (
    find_rotary_modules,
    frequency_buffer,
    prefixed,
    rounds_to,
    stock_geometry,
)
from ropepatch.attention.rotary import RotarySite, ScaledRotary, is_scaled
from ropepatch.errors import PatchVerificationError
from ropepatch.logit_change import change_from_stock, logit_change
from ropepatch.manifest import Manifest
from ropepatch.methods import RotaryFrequencies
from ropepatch.methods.registry import replaces
from ropepatch.surgery import AttributeChange, PatchRecord, find_record

AGAIN = "unpatch_model, then patch_model again"


@dataclass(frozen=True)
class Verification:
    """What `verify` found to hold."""

    method: str
    live: Literal[
        "patched", "native"
    ]  #: ropepatch's module runs, or transformers' own from the config
    sites: int  #: sets of frequencies compared, or attention modules with a score bias
    frequency_error: float  #: largest relative difference to the recomputed frequencies
    logit_change: (
        float | None
    )  #: largest change of a logit against unscaled positions; None: native


def verify(model: nn.Module) -> Verification:
    """Prove that the patch of `model` is live: frequencies, attention factor, config, and logits.

    A patched checkpoint that plain transformers loaded passes when its own modules reproduce the patch.
    Raises PatchVerificationError when there is no patch, or when a reload, a dtype cast, a replaced
    submodule or an edited config has undone a part of it.
    """
    found = find_record(model)
    if found is None:
        return verify_native(pretrained_model(model))
    record, sites, error = require_intact(model)
    length = record.about.max_position_embeddings
    biases = score_biases(model)
    if replaces_stock(record):
        change = change_from_stock(found[0], record)
        scales = record.about.factor > 1 or replaces(record.about.method)
    else:
        change = logit_change(pretrained_model(model), length, biases)
        scales = any(scales_at(site, length) for site in sites) or any(
            bias.is_scaled() for bias in biases
        )
    if not change > 0.0 and scales:
        raise PatchVerificationError(
            f"{record.about.method!r} is in place, but the logits do not depend on it: something has"
            f" replaced what uses it; {AGAIN}"
        )
    count = len(sites) if sites else len(record.about.sites)
    return Verification(record.about.method, "patched", count, error, change)


def replaces_stock(record: PatchRecord) -> bool:
    """Whether positions are made by something else than what the unpatched model has."""
    return record.about.mechanism == "absolute" or replaces(record.about.method)


def require_intact(model: nn.Module) -> tuple[PatchRecord, list[RotarySite], float]:
    """The record, the scaled sites and their largest error, without running the model.

    Raises PatchVerificationError when something has overwritten a part of the patch.
    """
    found = find_record(model)
    if found is None:
        raise PatchVerificationError("no patch is live on the model")
    root, record = found
    require_live(record, pretrained_model(root))
    sites = []
    for module in scaled_modules(root):
        require_stock_frequencies(module)
        sites += [site for site in module.sites.values() if site.method is not None]
    # A score bias is made from its method at every call: that its module is live says all.
    return record, sites, max((site_error(site) for site in sites), default=0.0)


def require_live(record: PatchRecord, model: PreTrainedModel) -> None:
    """Raise PatchVerificationError naming every change that something else has overwritten.

    A generation config belongs to the user, who may set it anew.
    """
    config = text_config(model)
    held = {id(part) for part in (*model.modules(), *text_configs(model))}
    lost = [
        f"{type(change.target).__name__}.{change.attribute}"
        if isinstance(change, AttributeChange)
        else f"the forward hook of {type(change.target).__name__}"
        for change in record.changes
        if not isinstance(change.target, GenerationConfig)
        and not (id(change.target) in held and change.is_live())
    ]
    if all(change.target is not config for change in record.changes):
        lost.append(type(config).__name__)
    if lost:
        raise PatchVerificationError(
            f"the patch {record.about.method!r} was overwritten at {', '.join(lost)}; {AGAIN}"
        )


def require_stock_frequencies(module: ScaledRotary) -> None:
    """Raise PatchVerificationError if the stock module, which computes what is unscaled, was changed."""
    for site in module.sites.values():
        if site.frequencies is None:
            stock = frequency_buffer(module.stock, site.layer_type)
            if not rounds_to(stock, site.geometry):
                raise PatchVerificationError(
                    f"the unscaled frequencies ({stock.dtype}) are not those of the checkpoint any more;"
                    " load it again, then patch it"
                )


def site_error(site: RotarySite) -> float:
    """Largest relative error of the frequencies that a site holds; raises unless they are exact."""
    assert site.method is not None
    held, expected = site.inv_freq, site.geometry.inv_freq
    factor = wanted = 1.0
    if site.frequencies is not None:
        made = site.method.rotary(site.geometry)
        held, expected = site.frequencies.inv_freq, made.inv_freq
        factor, wanted = float(site.frequencies.attention_factor), float(made.attention_factor)
    error = relative_error(held, expected)
    if held.dtype != torch.float64 or not error <= 1e-12 or factor != wanted:  # or NaN
        raise PatchVerificationError(
            f"the frequencies of {site.method.name!r} ({held.dtype}) are off by {error:.1e}, its attention"
            f" factor by {abs(factor - wanted):.1e}; {AGAIN}"
        )
    return error


def relative_error(held: Tensor, expected: Tensor) -> float:
    """Largest |held − expected| / expected; for a pair that stands still, the difference itself."""
    held, expected = held.double().cpu(), expected.double().cpu()
    scale = torch.where(expected > 0, expected, torch.ones_like(expected))
    return float(((held - expected).abs() / scale).max())


def scales_at(site: RotarySite, length: int) -> bool:
    """Whether a row of `length` tokens gets other angles than the unpatched model's."""
    assert site.method is not None
    made = site.method.rotary(site.geometry, torch.tensor(length))
    return bool(is_scaled(made, site.geometry.inv_freq).any())


def verify_native(model: PreTrainedModel) -> Verification:
    """Check a patch that transformers itself applies, from the config that ropepatch saved."""
    config = text_config(model)
    manifest = Manifest.in_config(config)
    if manifest is None:
        raise PatchVerificationError(
            f"no patch is live on this {type(model).__name__}, and its config names none; if it was"
            " patched before it was saved, ropepatch.save_pretrained and load_pretrained keep the patch"
        )
    method = manifest.make()
    if manifest.mechanism != "rotary":
        return verify_native_buckets(model, manifest)
    errors = []
    for module in find_rotary_modules(model):
        for name in module.layer_types:
            if manifest.layer_types is not None and name not in manifest.layer_types:
                continue
            before = manifest.unpatched["rope_parameters"]
            length = manifest.original_max_position_embeddings
            geometry = stock_geometry(module, name, before, length)
            expected = method.rotary(geometry)
            held = frequency_buffer(module.module, name)
            errors.append(native_error(module.module, name, held, expected, manifest))
    return Verification(method.name, "native", len(errors), max(errors), None)


def verify_native_buckets(model: PreTrainedModel, manifest: Manifest) -> Verification:
    """Check that transformers' own T5 attention reaches as far as the patch does."""
    wanted = getattr(text_config(model), "relative_attention_max_distance", None)
    attentions = [each.module for stack in find_bias_stacks(model) for each in stack.attentions]
    live = {getattr(module, "relative_attention_max_distance", None) for module in attentions}
    if live != {wanted}:
        raise PatchVerificationError(
            f"the config says {manifest.summary()}, but the live modules reach {sorted(map(str, live))} "
            f"tokens, not {wanted}; load with ropepatch.load_pretrained"
        )
    return Verification(str(manifest.method), "native", len(attentions), 0.0, None)


def native_error(
    module: nn.Module,
    layer_type: str | None,
    held: Tensor,
    expected: RotaryFrequencies,
    manifest: Manifest,
) -> float:
    """Relative error of a stock module's frequencies; raises when it is more than float32's rounding."""
    error = relative_error(held, expected.inv_freq)
    factor = float(getattr(module, prefixed("attention_scaling", layer_type)))
    wanted = float(expected.attention_factor)
    if not error <= 2e-6 or abs(factor - wanted) > 1e-6:  # or NaN
        raise PatchVerificationError(
            f"the config says {manifest.summary()}, but the live frequencies ({held.dtype}) are off by"
            f" {error:.1e} and the attention factor by {abs(factor - wanted):.1e}; load with"
            " ropepatch.load_pretrained, which keeps the patch through casts"
        )
    return error
