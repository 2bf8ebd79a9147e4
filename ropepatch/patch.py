"""patch_model and its relatives: put a scaled layer into a loaded model, and take it out again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.bias_plan import plan_bias
from ropepatch.adapters.bias_stacks import find_bias_stacks
from ropepatch.adapters.caches import ScaleRows
from ropepatch.adapters.pretrained import pretrained_model
from ropepatch.adapters.replacement_plan import (
    needs_attention,
    plan_absolute,
    plan_rotary_replacement,
)
from ropepatch.adapters.rotary import find_rotary_modules, has_rotary_modules
from ropepatch.adapters.rotary_plan import plan_rotary
from ropepatch.adapters.tables import find_tables
from ropepatch.attention.lengths import request_lengths
from ropepatch.errors import AlreadyPatchedError, LengthError, MethodOptionError, NotPatchedError
from ropepatch.manifest import PatchInfo
from ropepatch.methods import Method, methods_for
from ropepatch.methods.base import require_number
from ropepatch.methods.fitting import require_score_bias
from ropepatch.methods.registry import chosen_method, method_class
from ropepatch.methods.replacement import Replacement
from ropepatch.surgery import HookChange, PatchRecord, find_record

_DEFAULT_FACTOR = 4.0
_WHOLE = (torch.int64, torch.int32, torch.int16)

Model = TypeVar("Model", bound=nn.Module)


def patch_model(
    model: Model,
    method: str | Method = "yarn",
    factor: float | None = None,
    *,
    target_length: int | None = None,
    original_max_position_embeddings: int | None = None,
    replace: bool = False,
    layer_types: Sequence[str] | None = None,
    part: str = "both",
    attention: str = "auto",
    fit: str | None = None,
    text: Tensor | None = None,
    **options: Any,
) -> Model:
    """Scale the positions of `model` in place and return it. All or nothing.

    `factor` is the target length over the length that the checkpoint was trained to (4 if neither
    it nor `target_length`, in tokens, is given). `original_max_position_embeddings` overrides what
    the config says of that trained length. `replace=True` puts the patch in the place of another
    one or of the config's own scaling. `layer_types` names the layer types to scale where a model
    has several, by default the full-attention ones; `part` ("encoder", "decoder") what of an
    encoder–decoder model. Models with score biases (BLOOM, MPT, Falcon with ALiBi, T5) also get
    attention in memory linear in the length; `attention` chooses how it is computed: "folded",
    "toeplitz", "flex", or "eager" for the whole matrix. `fit="profile"` starts the parameters of a new
    score bias where it comes closest to the mean scores by distance that the checkpoint's own positions
    give on `text`, input_ids (rows, tokens). Other keywords are options of the method.

    Raises MethodOptionError, UnknownMethodError, UnsupportedMechanismError, LengthError, DataError for a
    text that is none, UnsupportedModelError, AlreadyScaledError, AlreadyPatchedError or
    NothingPatchedError; the model is then as it was.
    """
    root = pretrained_model(model)
    previous = find_record(model)
    if previous is not None:
        _require_replaceable(previous[1].about, part, replace)
    kind = type(method) if isinstance(method, Method) else method_class(method)
    text = _checked_fit(kind, fit, text)
    if previous is not None:
        previous[1].revert(previous[0])
    try:
        record = _plan(
            root,
            kind,
            lambda length: resolve_method(method, factor, target_length, length, options),
            original_max_position_embeddings,
            replace,
            layer_types,
            part,
            attention,
            text,
        )
        record.apply(root)
    except BaseException:
        if previous is not None:
            previous[1].apply(previous[0])
        raise
    return model


def _require_replaceable(info: PatchInfo, part: str, replace: bool) -> None:
    """Raise AlreadyPatchedError unless a patch of `part` may take the place of the live one."""
    if not replace:
        raise AlreadyPatchedError(
            f"the model is patched with {info.method!r}, factor {info.factor:g}; call "
            "unpatch_model first, or pass replace=True (--replace; patch.replace=true in a recipe)"
        )
    if {info.part, part} == {"encoder", "decoder"}:
        raise AlreadyPatchedError(
            f"the {info.part} is patched with {info.method!r}, and a model carries one patch: one of the "
            f"{part} alone would take it out, and what it trained; call unpatch_model first, or give "
            "part='both'"
        )


def _plan(
    model: PreTrainedModel,
    kind: type[Method],
    method_for: Callable[[int], Method],
    original_length: int | None,
    replace: bool,
    layer_types: Sequence[str] | None,
    part: str,
    attention: str,
    text: Tensor | None,
) -> PatchRecord:
    """The changes for whichever mechanism the model has. Raises for options that are not for it."""
    mechanism = mechanism_of(model)
    if mechanism not in kind.mechanisms():
        raise kind.unsupported(mechanism)
    replaces = issubclass(kind, Replacement)
    ours = mechanism in ("alibi", "relative") or needs_attention(model, kind)
    foreign = {
        "layer_types": layer_types is not None and (mechanism != "rotary" or replaces),
        "part": part != "both" and mechanism != "relative",
        "attention": attention != "auto" and not ours,
    }
    for option, is_given in foreign.items():
        if is_given:
            why = f"to {type(model).__name__}, whose positions are {mechanism}, with {kind.name!r}"
            if option == "layer_types" and replaces:
                why = f"with {kind.name!r}, which replaces the positions of all layers"
            raise MethodOptionError(f"{option} does not apply {why}; leave it out")
    if mechanism == "absolute":
        return plan_absolute(model, method_for, original_length, attention, text)
    if mechanism == "rotary" and replaces:
        return plan_rotary_replacement(model, method_for, original_length, replace, attention, text)
    if mechanism == "rotary":
        return plan_rotary(model, method_for, original_length, replace, layer_types)
    return plan_bias(model, method_for, original_length, part, attention, text)


def _checked_fit(kind: type[Method], fit: str | None, text: Tensor | None) -> Tensor | None:
    """The text to fit to, or None. Raises MethodOptionError for a fit without a text, or that cannot be."""
    if fit not in (None, "profile"):
        raise MethodOptionError(f"fit is {fit!r}; allowed: 'profile', or leave it out")
    if (fit is None) != (text is None):
        missing, given = ("text", "fit") if text is None else ("fit='profile'", "text")
        raise MethodOptionError(
            f"{given} is given without {missing}; fit='profile' measures mean scores on text=, input_ids "
            "of shape (rows, tokens)"
        )
    if fit is not None:
        require_score_bias(kind)
    return text


def mechanism_of(model: PreTrainedModel) -> str:
    """How a model encodes positions. Raises UnsupportedModelError for none that is understood."""
    stacks = find_bias_stacks(model)
    if stacks:
        return stacks[0].mechanism
    if find_tables(model) and not has_rotary_modules(model):
        return "absolute"
    find_rotary_modules(model)
    return "rotary"


def resolve_method(
    method: str | Method,
    factor: float | None,
    target_length: int | None,
    original_length: int,
    options: dict[str, Any],
) -> Method:
    """The method with its factor, from any consistent way of giving them."""
    if factor is not None:
        require_number("factor", factor, at_least=1)
    if target_length is not None:
        if type(target_length) is not int or target_length < original_length:
            raise LengthError(
                f"target_length is {target_length!r}; allowed: a whole number of tokens, at least "
                f"the trained length ({original_length})"
            )
        by_length = target_length / original_length
        if factor is not None and abs(factor - by_length) > 1e-9 * by_length:
            raise LengthError(
                f"factor {factor:g} and target_length {target_length} contradict each other: with "
                f"a trained length of {original_length} tokens the factor is {by_length:g}; give "
                "one"
            )
        factor = by_length
    if not isinstance(method, Method):
        options = {"factor": _DEFAULT_FACTOR if factor is None else factor, **options}
    elif factor is not None and factor != method.factor:
        raise LengthError(
            f"factor {factor:g} contradicts the factor {method.factor:g} of the method given"
        )
    return chosen_method(method, options)


def unpatch_model(model: Model) -> Model:
    """Take the patch out of `model` in place and return it, bit-identical to what it was.

    Raises NotPatchedError when there is none.
    """
    found = find_record(model)
    if found is None:
        raise NotPatchedError("the model carries no patch; patch_model puts one in")
    found[1].revert(found[0])
    return model


@contextmanager
def patched(
    model: Model, method: str | Method = "yarn", factor: float | None = None, **options: Any
) -> Iterator[Model]:
    """`with patched(model, "yarn", 4):` patches for the body, and undoes it also when the body raises.

    With `replace=True` the former patch comes back afterwards. Takes what patch_model takes.
    """
    previous = find_record(model)
    patch_model(model, method, factor, **options)
    try:
        yield model
    finally:
        if find_record(model) is not None:  # the body may have taken it out
            unpatch_model(model)
        if previous is not None:
            previous[1].apply(previous[0])


@contextmanager
def planned_length(model: nn.Module, tokens: int | Tensor) -> Iterator[None]:
    """Within the body, a length-dependent method scales rows for `tokens`, not for what they have yet.

    One number for all rows, or one for each, (batch,). For decoding loops of your own that know how
    long they will get, as `generate` does: no row then changes its scale on the way. A `generate` in
    the body plans for itself. Raises NotPatchedError, LengthError for what is no length,
    MethodOptionError for a method that scales all lengths alike.
    """
    found = find_record(model)
    if found is None:
        raise NotPatchedError("no patch is live on the model; call patch_model first")
    sites = [
        change.hook.site
        for change in found[1].changes
        if isinstance(change, HookChange) and isinstance(change.hook, ScaleRows)
    ]
    if not sites:
        raise MethodOptionError(
            f"{found[1].about.method!r} scales rows of every length alike; there is nothing to plan"
        )
    number = isinstance(tokens, int | Tensor) and not isinstance(tokens, bool)
    lengths = torch.as_tensor(tokens if number else 0.0)
    if lengths.dim() > 1 or lengths.dtype not in _WHOLE or not bool((lengths > 0).all()):
        raise LengthError(
            f"tokens is {tokens!r}; allowed: a whole number, at least 1, or a tensor of one for each row"
        )
    lengths = lengths.reshape(-1)
    with request_lengths(sites, lengths):
        yield


def patch_info(model: nn.Module) -> PatchInfo | None:
    """What is patched into `model`, through PEFT and other wrappers; None when nothing is."""
    found = find_record(model)
    return None if found is None else found[1].about


def list_methods(
    model_or_mechanism: nn.Module | str | None = None, *, replacing: bool | None = None
) -> list[str]:
    """Names of all methods, or of those that serve a model or a mechanism.

    Mechanisms are "rotary", "alibi", "relative" and "absolute". `replacing` asks for methods that
    put another encoding in its place (True) or scale the one that there is (False).
    """
    mechanism = model_or_mechanism
    if isinstance(mechanism, nn.Module):
        mechanism = mechanism_of(pretrained_model(mechanism))
    return methods_for(mechanism, replacing=replacing)
