"""patch_model and its relatives: put a scaled layer into a loaded model, and take it out again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ropepatch.adapters.plan import Plan, plan_rotary
from ropepatch.adapters.pretrained import pretrained_model
from ropepatch.adapters.rotary import find_rotary_modules
from ropepatch.errors import AlreadyPatchedError, LengthError, MethodOptionError, NotPatchedError
from ropepatch.methods import Method, make_method, methods_for
from ropepatch.methods.base import require_number
from ropepatch.surgery import PatchRecord, find_record

_DEFAULT_FACTOR = 4.0

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class PatchInfo:
    """What is patched into a model."""

    method: str  #: registry name
    options: dict[str, Any]  #: every option of the method, `factor` included
    mechanism: str  #: what was scaled: "rotary"
    original_max_position_embeddings: int  #: tokens that the checkpoint was trained to
    max_position_embeddings: int  #: tokens that the patched model is for
    layer_types: tuple[str, ...] | None  #: the layer types scaled; None: the model has one
    sites: tuple[str, ...] = ()  #: paths of the modules that were replaced

    @property
    def factor(self) -> float:
        """Target length over trained length."""
        return float(self.options["factor"])


def patch_model(
    model: Model,
    method: str | Method = "yarn",
    factor: float | None = None,
    *,
    target_length: int | None = None,
    original_max_position_embeddings: int | None = None,
    replace: bool = False,
    layer_types: Sequence[str] | None = None,
    **options: Any,
) -> Model:
    """Scale the positions of `model` in place and return it. All or nothing.

    `factor` is the target length over the length that the checkpoint was trained to (4 if neither
    it nor `target_length`, in tokens, is given). `original_max_position_embeddings` overrides what
    the config says of that trained length. `replace=True` puts the patch in the place of another
    one or of the config's own scaling. `layer_types` names the layer types to scale where a model
    has several, by default the full-attention ones. Other keywords are options of the method.

    Raises MethodOptionError, UnknownMethodError, LengthError, UnsupportedModelError,
    AlreadyScaledError or AlreadyPatchedError; the model is then as it was.
    """
    root = pretrained_model(model)
    previous = find_record(model)
    if previous is not None and not replace:
        info: PatchInfo = previous[1].about
        raise AlreadyPatchedError(
            f"the model is patched with {info.method!r}, factor {info.factor:g}; call "
            "unpatch_model first, or pass replace=True (--replace)"
        )
    if previous is not None:
        previous[1].revert(previous[0])
    try:
        plan = plan_rotary(
            root,
            lambda length: _resolve_method(method, factor, target_length, length, options),
            original_max_position_embeddings=original_max_position_embeddings,
            replace=replace,
            layer_types=layer_types,
        )
        PatchRecord(plan.changes, about=_info_of(plan)).apply(root)
    except BaseException:
        if previous is not None:
            previous[1].apply(previous[0])
        raise
    return model


def _info_of(plan: Plan) -> PatchInfo:
    """What a plan puts into a model."""
    return PatchInfo(
        method=plan.method.name,
        options={"factor": plan.method.factor, **plan.method.options()},
        mechanism="rotary",
        original_max_position_embeddings=plan.original_max_position_embeddings,
        max_position_embeddings=plan.max_position_embeddings,
        layer_types=plan.layer_types,
        sites=plan.sites,
    )


def _resolve_method(
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
        return make_method(method, factor=_DEFAULT_FACTOR if factor is None else factor, **options)
    if options:
        raise MethodOptionError(
            f"{method.name!r} is given as an instance; set {', '.join(options)} there"
        )
    if factor is not None and factor != method.factor:
        raise LengthError(
            f"factor {factor:g} contradicts the factor {method.factor:g} of the method given"
        )
    return method


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


def patch_info(model: nn.Module) -> PatchInfo | None:
    """What is patched into `model`, through PEFT and other wrappers; None when nothing is."""
    found = find_record(model)
    return None if found is None else found[1].about


def list_methods(model_or_mechanism: nn.Module | str | None = None) -> list[str]:
    """Names of all methods, or of those that serve a mechanism ("rotary") or a model."""
    if isinstance(model_or_mechanism, nn.Module):
        find_rotary_modules(pretrained_model(model_or_mechanism))
        return methods_for("rotary")
    return methods_for(model_or_mechanism)
