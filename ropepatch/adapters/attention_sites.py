"""Attention modules that go through transformers' interface: found and understood by running them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.interface import OWN_ATTENTION, Seen, watched_attention
from ropepatch.adapters.pretrained import evaluation_mode, is_causal, text_config, text_configs
from ropepatch.adapters.rotary import RotaryModule, frequency_buffer
from ropepatch.attention.rotary import LAYOUTS
from ropepatch.errors import UnsupportedModelError

_TOKENS = 8
_NONE = torch.tensor([-1])
#: Pairs are told by their factors: 2 % apart, more than bfloat16 rounds.
_STEP = 1.02


@dataclass(frozen=True)
class AttentionModule:
    """One attention module of a decoder or encoder."""

    path: str
    module: nn.Module
    heads: int
    causal: bool
    #: number of the rotary pair that turns each channel, −1 for those that none does; (channels,)
    pairs: Tensor

    @property
    def rotates(self) -> bool:
        """Whether the layer reads positions at all."""
        return bool((self.pairs >= 0).any())


def computes_itself(model: PreTrainedModel) -> bool:
    """Whether attention is beside transformers' interface, but known."""
    return any(type(module).__name__ in OWN_ATTENTION for module in model.modules())


def find_attention(
    model: PreTrainedModel, rotary: list[RotaryModule], why: str
) -> list[AttentionModule]:
    """Every self-attention module, in the order of the layers.

    Raises UnsupportedModelError for attention that cannot carry what `why` names.
    """
    names = {module: name for name, module in model.named_modules()}
    own = [module for module in names if type(module).__name__ in OWN_ATTENTION]
    if own:
        heads = text_config(model).num_attention_heads
        return [AttentionModule(names[each], each, heads, True, _NONE) for each in own]
    with _marked(rotary, 1.0):
        plain = _watch(model)
    weightless = any(call.query.is_meta for call in plain)  # who plans a run has no values yet
    _require_understood(model, plain, why)
    with _marked(rotary, _STEP):
        marked = plain if weightless else _watch(model)
    return [
        AttentionModule(
            path=names[before.module],
            module=before.module,
            heads=before.query.shape[1],
            causal=is_causal(before.module, text_config(model)),
            pairs=torch.zeros(1).long() if weightless else _pairs(before.query, after.query),
        )
        for before, after in zip(plain, marked, strict=True)
    ]


@torch.no_grad()
def _watch(model: PreTrainedModel) -> list[Seen]:
    """Every call of the attention interface in one pass over a few tokens."""
    ids = torch.arange(3, 3 + _TOKENS, device=model.device)[None]
    ids = ids % int(model.config.get_text_config().vocab_size)
    arguments: dict[str, Any] = {"use_cache": False} if model.can_generate() else {}
    with evaluation_mode(model), watched_attention(text_configs(model)) as seen:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
    return seen


def _require_understood(model: PreTrainedModel, seen: list[Seen], why: str) -> None:
    where = type(model).__name__
    if not seen:
        raise UnsupportedModelError(
            f"{where} computes attention itself, not through transformers' attention interface, so it "
            f"cannot carry {why}; nothing was patched"
        )
    if getattr(model.config, "add_cross_attention", False):
        raise UnsupportedModelError(
            f"{where} has cross-attention (add_cross_attention), which cannot be told from its own; "
            "nothing was patched"
        )
    for call in seen:
        layer = type(call.module).__name__
        if call.settings.get("s_aux") is not None:
            raise UnsupportedModelError(
                f"{layer} has learned sinks beside its scores, which cannot be combined with {why}; "
                "nothing was patched"
            )
        if call.value.shape[-1] != call.query.shape[-1]:
            raise UnsupportedModelError(
                f"{layer} has values of {call.value.shape[-1]} channels and queries of "
                f"{call.query.shape[-1]} (latent attention), which cannot carry {why}; nothing was patched"
            )


@contextmanager
def _marked(rotary: list[RotaryModule], step: float) -> Iterator[None]:
    """Within the body, rotation multiplies pair i by step^(i + 1), and turns none."""
    for found in rotary:
        vars(found.module)["forward"] = _Marking(found, step)
    try:
        yield
    finally:
        for found in rotary:
            del vars(found.module)["forward"]


class _Marking:
    """Stands in for the forward of a rotary module."""

    def __init__(self, found: RotaryModule, step: float) -> None:
        self.found, self.step = found, step

    def __call__(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        count = frequency_buffer(self.found.module, layer_type).numel()
        factors = self.step ** torch.arange(1, count + 1, dtype=torch.float64, device=x.device)
        cosines = LAYOUTS[self.found.layout](factors).expand(*position_ids.shape, -1).to(x.dtype)
        return cosines, torch.zeros_like(cosines)


def _pairs(before: Tensor, after: Tensor) -> Tensor:
    """Which pair multiplied every channel of (batch, heads, query, channels). long (channels,)"""
    flat, marked = (states.double().flatten(0, 2) for states in (before, after))
    largest = flat.abs().argmax(0, keepdim=True)
    ratio = (marked.gather(0, largest) / flat.gather(0, largest))[0]
    return (ratio.abs().log() / torch.tensor(_STEP).double().log()).round().long() - 1
