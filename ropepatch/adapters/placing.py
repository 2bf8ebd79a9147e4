"""What a replacement puts into a stack of layers: its module, and hooks by which the stack reads it."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.interface import IMPLEMENTATION, NAME, ask_for_probabilities
from ropepatch.adapters.profile import Fit
from ropepatch.attention.lengths import given_cache, named_arguments
from ropepatch.attention.position_modules import BiasModule, TableModule
from ropepatch.errors import LengthError, PatchError, RopepatchWarning, UnsupportedModelError
from ropepatch.methods import Method
from ropepatch.methods.replacement import (
    HeadGeometry,
    ScoreBiasMethod,
    TableGeometry,
    TableMethod,
)
from ropepatch.surgery import AttributeChange, Change, HookChange


def bias_changes(
    stack: nn.Module,
    method: Method,
    heads: list[int],
    causal: bool,
    length: int,
    fit: Fit | None = None,
) -> list[Change]:
    """The module of a score bias, under the method's name; none for a method without a bias.

    `heads` are those of every layer. Raises MethodOptionError for what the method cannot serve,
    UnsupportedModelError for layers that one bias cannot serve, or a name that is taken.
    """
    if not isinstance(method, ScoreBiasMethod):
        return []
    if len(set(heads)) != 1:
        raise UnsupportedModelError(
            f"layers of {type(stack).__name__} have {sorted(set(heads))} heads, and one bias serves all; "
            "nothing was patched"
        )
    geometry = HeadGeometry(
        num_heads=heads[0],
        num_layers=len(heads),
        bidirectional=not causal,
        original_max_position_embeddings=length,
    )
    fitted = None if fit is None else fit(method, geometry)
    return _module_changes(stack, method, BiasModule(method, geometry, fitted))


def table_changes(stack: nn.Module, method: TableMethod, dim: int, length: int) -> list[Change]:
    """The module of vectors by position, under the method's name, of `dim` channels.

    Raises UnsupportedModelError when the name is taken.
    """
    geometry = TableGeometry(
        rows=round(length * method.factor), dim=dim, original_max_position_embeddings=length
    )
    return _module_changes(stack, method, TableModule(method, geometry))


def _module_changes(stack: nn.Module, method: Method, module: nn.Module) -> list[Change]:
    if hasattr(stack, method.name):
        raise UnsupportedModelError(
            f"{type(stack).__name__} has an attribute {method.name!r} already; nothing was patched"
        )
    like = next(stack.parameters())
    module.to(like.device, like.dtype if like.is_floating_point() else None)
    changes: list[Change] = [AttributeChange(stack, method.name, module.train(stack.training))]
    if [*module.parameters()]:
        changes.append(HookChange(stack, TellOfFrozen(method.name)))
    return changes


@dataclass(eq=False)
class TellOfFrozen:
    """Hook before a stack: warns, once, when all but what the patch put in trains, as PEFT would have it."""

    name: str  #: of the module in the stack
    told: bool = False

    def __call__(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: object
    ) -> None:
        if torch.compiler.is_compiling() or output or self.told:
            return
        if not (stack.training and torch.is_grad_enabled()):
            return
        module = stack.get_submodule(self.name)
        # What PEFT trains a copy of, it has wrapped: it is frozen by choice, if it is.
        if not isinstance(module, BiasModule | TableModule) or _trains(module):
            return
        self.told = _trains(stack)
        if self.told:
            warnings.warn(
                f"{self.name!r}, which the patch put into {type(stack).__name__}, is frozen while other "
                "parameters train, so it stays as it is. PEFT freezes what is there before it: "
                "call patch_model after get_peft_model, or give LoraConfig "
                f"modules_to_save=[{self.name!r}]",
                RopepatchWarning,
                stacklevel=2,
            )


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


@dataclass(eq=False)
class AddVectors:
    """Hook before a stack: the vectors of its tokens' positions are added to their embeddings."""

    name: str  #: of the module in the stack

    def __call__(
        self, stack: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], *output: object
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        if output:
            return None
        given = dict(named_arguments(stack, args, kwargs))
        embeddings = given.get("inputs_embeds")
        if embeddings is None:
            if given.get("input_ids") is None:
                return None  # stock says what is missing
            embeddings = stack.get_input_embeddings()(given.pop("input_ids"))
        positions = _positions(given, embeddings)
        vectors: Tensor = stack.get_submodule(self.name)(positions)
        # Granite's stack multiplies what it is given; others do so within the embedding module.
        vectors = vectors / getattr(stack.config, "embedding_multiplier", 1.0)
        given["inputs_embeds"] = embeddings + vectors.to(embeddings.device, embeddings.dtype)
        return (), given


def _positions(given: dict[str, Any], embeddings: Tensor) -> Tensor:
    """Positions as given, or counted by the mask, or from what is cached on. (batch or 1, n)"""
    positions: Tensor | None = given.get("position_ids")
    if positions is not None:
        return positions
    cache = given_cache(given)
    cache = getattr(cache, "self_attention_cache", cache)
    seen = 0 if cache is None else cache.get_seq_length()
    places = torch.arange(embeddings.shape[1], device=embeddings.device) + seen
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return places[None]
    counted = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return counted.to(places.device)[:, places]


@dataclass(eq=False)
class RequireLive:
    """Hook around a stack: its attention is still ours, and hears whether probabilities are asked for."""

    def __call__(
        self, stack: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], *output: object
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        if output:
            ask_for_probabilities(False)
            return None
        given = named_arguments(stack, args, kwargs)
        name = getattr(stack.config, IMPLEMENTATION)
        if name != NAME:
            raise PatchError(
                f"the attention of {type(stack).__name__} was set to {name!r} after the patch, which "
                "would leave the patch out; call unpatch_model, set_attn_implementation, patch_model"
            )
        asked = given.get("output_attentions")
        ask_for_probabilities(bool(stack.config.output_attentions if asked is None else asked))
        return ((), _as_one_document(given)) if torch.compiler.is_compiling() else None


def _as_one_document(given: dict[str, Any]) -> dict[str, Any]:
    """With a mask of ones where nobody tells of borders: to look for some would break the graph."""
    borders = (given.get("attention_mask"), given.get("position_ids"), given_cache(given))
    if any(border is not None for border in borders):
        return given
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if tokens is None:
        return given  # stock says what is missing
    ones = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return given | {"attention_mask": ones}


@dataclass(eq=False)
class RequireRoom:
    """Hook before a stack that keeps something for every position: there are no more tokens than that."""

    longest: int  #: tokens

    def __call__(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: object
    ) -> None:
        if output:
            return
        given = named_arguments(stack, args, kwargs)
        ids = given.get("input_ids")
        tokens = given.get("inputs_embeds") if ids is None else ids
        if isinstance(tokens, Tensor) and tokens.shape[1] > self.longest:
            raise LengthError(
                f"{tokens.shape[1]} tokens are more than the {self.longest} that the model is patched "
                "for; patch it for more (factor= or target_length=), or read fewer"
            )
