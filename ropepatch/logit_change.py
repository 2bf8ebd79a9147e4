"""How much the logits of a patched model owe to the patch: it is run with and without."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ropepatch.adapters.active_positions import scaled_modules
from ropepatch.adapters.pretrained import (
    evaluation_mode,
    fast_weights,
    pretrained_model,
    text_config,
)
from ropepatch.attention.lengths import request_lengths
from ropepatch.attention.rotary import ScaledRotary
from ropepatch.attention.score_bias import ScoreBias
from ropepatch.surgery import PatchRecord

PROBE_TOKENS = 16
BIAS_PROBE_TOKENS = 64  # more than the distances that T5's buckets keep


@torch.no_grad()
def logit_change(model: PreTrainedModel, length: int, biases: list[ScoreBias]) -> float:
    """Largest change of a logit between scaled and unscaled positions, spread over `length` tokens."""
    modules = scaled_modules(model)
    hook = getattr(model, "_hf_hook", None)  # accelerate's, of a model whose weights are elsewhere
    device = modules[0].device if modules else getattr(hook, "execution_device", model.device)
    inputs = probe_inputs(model, length, spread=bool(modules), device=device)
    with fast_weights(model), evaluation_mode(model), ExitStack() as stack:
        lengths = torch.tensor([length], device=device)
        stack.enter_context(request_lengths((*modules, *biases), lengths))
        scaled = model(**inputs)[0]
        for module in modules:
            handle = module.register_forward_hook(unscaled_output, with_kwargs=True)
            stack.callback(handle.remove)
        for bias in biases:
            stack.callback(setattr, bias, "method", bias.method)
            bias.method = None
        unscaled = model(**inputs)[0]
    return float((scaled - unscaled).abs().max())


def probe_inputs(
    model: PreTrainedModel, length: int, *, spread: bool, device: torch.device
) -> dict[str, Any]:
    """Arguments of a forward call over a few tokens; score biases need no far positions to show."""
    count = min(PROBE_TOKENS if spread else BIAS_PROBE_TOKENS, length)
    # Downwards, so that the end-of-sequence token, which classifiers read, comes late.
    ids = (torch.arange(count, 0, -1, device=device) % text_config(model).vocab_size)[None]
    # Without a mask transformers takes jumps of the positions for document borders.
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if spread:
        inputs["position_ids"] = torch.linspace(0, length - 1, count, device=device).long()[None]
    return inputs


def unscaled_output(
    module: ScaledRotary, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> object:
    """Forward hook: answer with what the stock module would."""
    return module.stock(*args, **kwargs)


@torch.no_grad()
def change_from_stock(model: nn.Module, record: PatchRecord) -> float:
    """Largest change of a logit against the unpatched model, within its trained length."""
    root = pretrained_model(model)
    length = record.about.original_max_position_embeddings
    inputs = probe_inputs(root, length, spread=False, device=root.device)
    with fast_weights(root), evaluation_mode(root):
        patched = root(**inputs)[0]
        with record.suspended(model):
            stock = root(**inputs)[0]
    return float((patched - stock).abs().max())
