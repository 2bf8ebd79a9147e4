"""From a model with score biases and a method to the list of changes that a patch makes."""

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.bias_stacks import (
    ALIBI,
    BiasStack,
    Part,
    each_once,
    find_bias_stacks,
    notes_on,
)
from ropepatch.adapters.biased import forward_attribute, no_bias
from ropepatch.adapters.caches import ScaleRows
from ropepatch.adapters.given_positions import position_checks
from ropepatch.adapters.masks import CompactMasks
from ropepatch.adapters.placing import AddVectors, bias_changes, table_changes
from ropepatch.adapters.plan import (
    checked_length,
    config_changes,
    generation_changes,
    mask_changes,
    refusing_changes,
    request_changes,
)
from ropepatch.adapters.pretrained import (
    length_attribute,
    text_config,
    text_configs,
    trained_length,
)
from ropepatch.adapters.profile import checked_text, fit_to, measure_stacks
from ropepatch.attention.biased import KERNELS, Kernel
from ropepatch.attention.profiles import ScoreProfile
from ropepatch.attention.score_bias import AlibiBias, BucketBias, PlacedBias, ScoreBias
from ropepatch.errors import LengthError, MethodOptionError, NothingPatchedError
from ropepatch.manifest import Manifest, PatchInfo
from ropepatch.methods import Method
from ropepatch.methods.linear import Linear
from ropepatch.methods.replacement import Replacement, TableMethod
from ropepatch.surgery import (
    AttributeChange,
    Change,
    HookChange,
    PatchRecord,
    UnusedParameters,
)


def plan_bias(
    model: PreTrainedModel,
    method_for: Callable[[int], Method],
    original_max_position_embeddings: int | None,
    part: str,
    attention: str,
    text: Tensor | None = None,
) -> PatchRecord:
    """Plan the scaling of all score biases; `method_for` makes the method for a trained length.

    A bias in their place is fitted to the scores of `text`, if given.
    Raises MethodOptionError, LengthError, NothingPatchedError or DataError.
    """
    stacks = find_bias_stacks(model)
    mechanism = stacks[0].mechanism
    device = next(stacks[0].module.parameters()).device.type
    kernel = checked_kernel(attention, device, folds=mechanism == "alibi")
    chosen = _chosen_parts(part, stacks)
    length = _original_length(model, original_max_position_embeddings)
    method = method_for(length)
    profiles = {} if text is None else _profiles(model, stacks, length, text)
    changes: list[Change] = []
    biases: list[ScoreBias] = []
    for stack in stacks:
        scaling = method if stack.part in chosen else None
        if isinstance(scaling, Replacement):
            changes += _placed_modules(stack, scaling, length, profiles)
        made = stack.biases(scaling, length)
        biases += each_once(made.values())
        changes += _stack_changes(stack, made, kernel)
    told_part = part if mechanism == "relative" else None
    manifest = Manifest.of(method, length, mechanism=mechanism, part=told_part)
    changes += _config_changes(model, biases, method, manifest)
    changes += mask_changes(model)
    if method.length_dependent:
        changes += request_changes(model, biases)
    sites = tuple(each.path for stack in stacks for each in stack.attentions)
    about = PatchInfo(**vars(manifest), sites=sites, notes=notes_on(stacks))
    return PatchRecord(changes, about=about)


def _profiles(
    model: PreTrainedModel, stacks: list[BiasStack], length: int, text: Tensor
) -> dict[nn.Module, ScoreProfile]:
    """What the model's own biases do to the scores of a text, of every attention module that has one."""
    unscaled = plan_bias(model, lambda _: Linear(), length, "both", "auto")
    return measure_stacks(model, unscaled, stacks, checked_text(model, text, length))


def checked_kernel(attention: str, device: str, *, folds: bool = False) -> Kernel:
    """The way asked for. Raises MethodOptionError when this bias or machine cannot go it."""
    if attention not in KERNELS:
        raise MethodOptionError(f"attention is {attention!r}; allowed: {', '.join(KERNELS)}")
    kernel: Kernel = attention
    why = None
    if kernel == "folded" and not folds:
        why = "folds ALiBi's own slopes into channels, but this bias is another"
    if kernel == "toeplitz" and device != "cpu":
        why = f"is for the CPU's fused kernel, but the model is on {device}"
    if kernel == "flex" and device == "cuda" and importlib.util.find_spec("triton") is None:
        why = "needs triton to compile for a GPU, and it is not installed"
    if (
        kernel == "flex"
        and device == "cpu"
        and not any(map(shutil.which, ("c++", "g++", "clang++")))
    ):
        why = "needs a C++ compiler to run on a CPU, and none was found"
    if kernel == "flex" and device not in ("cuda", "cpu"):
        why = f"runs on CUDA and CPU, but the model is on {device}"
    if why is not None:
        raise MethodOptionError(f"attention='{kernel}' {why}; 'auto' takes what runs best")
    return kernel


def _chosen_parts(part: str, stacks: list[BiasStack]) -> set[str]:
    """Which stacks are scaled. Raises MethodOptionError for a misspelt part, NothingPatchedError for none."""
    allowed = ("both", *get_args(Part))
    if part not in allowed:
        raise MethodOptionError(f"part is {part!r}; allowed: {', '.join(allowed)}")
    there = {str(stack.part) for stack in stacks}
    chosen = there if part == "both" else there & {part}
    if not chosen:
        raise NothingPatchedError(f"the model has no {part}, only the {', '.join(there)}")
    return chosen


def _original_length(model: PreTrainedModel, given: int | None) -> int:
    """Tokens that the checkpoint was trained to: as given, or as its config tells."""
    length = trained_length(model) if given is None else checked_length(given)
    if length is None:
        raise LengthError(
            f"the config of this {type(model).__name__} does not say how many tokens it was trained "
            "to; give original_max_position_embeddings= (BLOOM: 2048; T5: 512; mT5: 1024)"
        )
    return length


def _placed_modules(
    stack: BiasStack,
    method: Replacement,
    length: int,
    profiles: dict[nn.Module, ScoreProfile],
) -> list[Change]:
    """What a replacement puts into a stack, whose own tables nobody reads then."""
    attentions = [each for each in stack.attentions if not each.crosses]
    heads = [stack.config.num_attention_heads] * len(attentions)
    measured = [profiles[each.module] for each in attentions if each.module in profiles]
    fit = fit_to(measured, stack.causal) if measured else None
    changes = bias_changes(stack.module, method, heads, stack.causal, length, fit)
    if isinstance(method, TableMethod):
        changes += table_changes(stack.module, method, stack.config.hidden_size, length)
        changes.append(HookChange(stack.module, AddVectors(method.name)))
    for owner in {each.owner for each in attentions if each.owner is not None}:
        changes.append(UnusedParameters(owner.get_submodule("relative_attention_bias")))
    return changes + position_checks(stack.module, method)


def _stack_changes(stack: BiasStack, biases: dict[Any, ScoreBias], kernel: Kernel) -> list[Change]:
    """Every attention module of a stack gets a forward of its own, and compact masks.

    None where stock does what is asked for: the whole matrix of a bias that is not scaled.
    """
    scaled = any(map(_scales, biases.values()))
    if kernel == "eager" and not scaled and not notes_on([stack]):
        return []
    changes: list[Change] = [  # before masks are made compact, which hides lengths
        HookChange(stack.module, ScaleRows(bias))
        for bias in each_once(biases.values())
        if isinstance(bias, AlibiBias) and bias.method is not None and bias.method.length_dependent
    ]
    for each in stack.attentions:
        forward = each.forward(
            module=each.module,
            bias=None if each.crosses else biases[each.module],
            kernel=kernel,
            causal=stack.causal and not each.crosses,
        )
        changes.append(AttributeChange(each.module, forward_attribute(each.module), forward))
    counts_tokens = False
    if stack.mechanism == "alibi":
        _, builder, counts_tokens = ALIBI[type(stack.attentions[0].module).__name__]
        instead = False if builder == "use_alibi" else no_bias
        changes.append(AttributeChange(stack.module, builder, instead))
        if any(isinstance(bias, PlacedBias) for bias in biases.values()):
            counts_tokens = False  # what is put in checks for itself
    return [*changes, HookChange(stack.module, CompactMasks(stack.causal, counts_tokens))]


def _scales(bias: ScoreBias) -> bool:
    """Whether any row gets another bias than in the unpatched model, be it longer than planned."""
    return (
        isinstance(bias.method, Replacement)
        or bias.is_scaled()
        or (bias.method is not None and bias.method.length_dependent)
    )


def _config_changes(
    model: PreTrainedModel, biases: list[ScoreBias], method: Method, manifest: Manifest
) -> list[Change]:
    """The configs say the new length and bias, to plain transformers too, or make it refuse."""
    attribute = length_attribute(text_config(model))
    after = {} if attribute is None else {attribute: manifest.max_position_embeddings}
    native = _native_attributes(biases, method)
    changes = generation_changes(model, attribute, manifest)
    if native is None:
        return changes + refusing_changes(model, after, manifest)
    for config in text_configs(model):
        changes += config_changes(config, after | native, manifest)
    return changes


def _native_attributes(biases: list[ScoreBias], method: Method) -> dict[str, Any] | None:
    """Config attributes with which plain transformers makes the same biases, or None if none do."""
    if not any(map(_scales, biases)):
        return {}
    # One config serves encoder and decoder, so both have to be scaled alike.
    reaches = {
        method.native_relative(bias.geometry)
        if isinstance(bias, BucketBias) and bias.method is not None
        else None
        for bias in biases
    }
    reach = reaches.pop()
    return None if reaches or reach is None else {"relative_attention_max_distance": reach}
