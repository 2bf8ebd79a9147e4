"""What a call tells of positions: refused where a patched model would silently read something else."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ropepatch.adapters.masks import require_no_gap
from ropepatch.adapters.pretrained import is_causal
from ropepatch.attention.lengths import given_cache, named_arguments
from ropepatch.errors import MaskError
from ropepatch.methods import Method
from ropepatch.methods.replacement import Replacement, ScoreBiasMethod
from ropepatch.methods.xpos import XPos
from ropepatch.surgery import Change, HookChange

ONE_DOCUMENT = ("OPTDecoder", "FalconModel")  #: stacks whose masks do not hear of position_ids


def position_checks(stack: nn.Module, method: Method) -> list[Change]:
    """The hook by which a stack refuses what its new encoding would misread, if there is any such."""
    counts = isinstance(method, ScoreBiasMethod | XPos)
    causal = all(is_causal(module, stack.config) for module in stack.modules())
    # In an encoder, vectors follow the positions, however those run.
    if not isinstance(method, Replacement) or not (counts or causal):
        return []
    packs = causal and type(stack).__name__ not in ONE_DOCUMENT
    return [HookChange(stack, CheckPositions(counts, packs))]


@dataclass(eq=False)
class CheckPositions:
    """Hook before a stack. Raises MaskError."""

    counts: bool  #: attention goes by the distance in tokens
    packs: (
        bool  #: documents that start again at 0 are told apart, if there is neither mask nor cache
    )

    def __call__(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: object
    ) -> None:
        if output or torch.compiler.is_compiling():  # to look at values would break the graph
            return
        given = named_arguments(stack, args, kwargs)
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            return  # a matrix tells everything
        if mask is not None and self.counts:
            require_no_gap(mask.bool())
        if not isinstance(positions, Tensor) or positions.dim() != 2:
            return
        cache = given_cache(given)
        cached = 0 if cache is None else int(cache.get_seq_length())
        seen, begun = _tokens(mask, cached, positions)
        told_apart = self.packs and mask is None and not keeps_cache(stack, given)
        if not told_apart and bool(((positions == 0) & begun).any()):
            raise MaskError(f"position_ids start again at 0, but {self._instead(stack)}")
        if self.counts:
            _require_counted(positions, seen)

    def _instead(self, stack: nn.Module) -> str:
        if self.packs:
            return (
                "documents in one row are told apart only where there is neither a mask nor a cache; "
                "pass use_cache=False and no attention_mask"
            )
        return f"{type(stack).__name__} does not tell documents in one row apart; give each its own row"


def keeps_cache(stack: nn.Module, given: dict[str, Any]) -> bool:
    """Whether a stack will have a cache in a call, be it a new one."""
    if given_cache(given) is not None:
        return True
    asked = given.get("use_cache")
    asked = getattr(stack.config, "use_cache", False) if asked is None else asked
    return bool(asked) and not (getattr(stack, "gradient_checkpointing", False) and stack.training)


def _tokens(mask: Tensor | None, cached: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the new tokens are no padding, and which of those follow another. bool (batch or 1, n)"""
    end = cached + positions.shape[1]
    if mask is None:
        mask = torch.ones(1, end)
    mask = F.pad(mask.bool(), (0, max(end - mask.shape[1], 0))).to(positions.device)
    begun = mask & (mask.cumsum(-1) > 1)
    return mask[:, cached:end], begun[:, cached:end]


def _require_counted(positions: Tensor, seen: Tensor) -> None:
    """Raise MaskError for positions that skip, (batch or 1, n), but for documents that start at 0."""
    strange = (positions[:, 1:] != positions[:, :-1] + 1) & (positions[:, 1:] != 0)
    if bool((strange & seen[:, 1:] & seen[:, :-1]).any()):
        raise MaskError(
            "position_ids skip, but the distance that this model goes by is that in tokens; leave "
            "position_ids out, or give such as count on by one"
        )
