"""What a checkpoint's own positions do to its scores: their mean by distance, head and layer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.attention_sites import AttentionModule
from ropepatch.adapters.bias_stacks import BiasStack
from ropepatch.adapters.biased import BiasedForward, forward_attribute
from ropepatch.adapters.interface import IMPLEMENTATION, NAME, Site, site_change
from ropepatch.adapters.pretrained import evaluation_mode, fast_weights, text_configs
from ropepatch.attention.profiles import ScoreProfile
from ropepatch.attention.score_bias import PlacedBias
from ropepatch.errors import DataError
from ropepatch.methods.fitting import fit_bias
from ropepatch.methods.replacement import HeadGeometry, ScoreBiasMethod
from ropepatch.surgery import AttributeChange, Change, PatchRecord

_ROWS = 8  #: of text that are read at a time

#: Fits the parameters of a bias to one profile for each layer.
Fit = Callable[[ScoreBiasMethod, HeadGeometry], dict[str, Tensor]]


def checked_text(model: PreTrainedModel, text: object, length: int) -> Tensor:
    """Tokens (rows, n) to measure on, n within the trained length. Raises DataError for anything else."""
    if (
        not isinstance(text, Tensor)
        or text.dim() != 2
        or text.is_floating_point()
        or not len(text)
        or text.shape[1] < 2
    ):
        found = f"of shape {tuple(text.shape)}" if isinstance(text, Tensor) else type(text).__name__
        raise DataError(
            f"text is {found}; fit='profile' measures scores between tokens: give a tensor of input_ids, "
            "(rows, at least 2 tokens), without padding"
        )
    if text.shape[1] > length:
        raise DataError(
            f"text has {text.shape[1]} tokens in a row, more than the {length} that the model was trained "
            f"to, beyond which its scores say nothing; cut rows to {length}"
        )
    known = int(model.config.get_text_config().vocab_size)
    if not bool(((text >= 0) & (text < known)).all()):
        raise DataError(
            f"text has tokens from {int(text.min())} to {int(text.max())}, but the model knows those from 0 "
            f"to {known - 1}; use the model's own tokenizer, and no padding of −100"
        )
    return text.contiguous().to(model.device)  # T5's loss takes no view of a longer text


def measure_modules(
    model: PreTrainedModel, modules: Sequence[AttentionModule], text: Tensor
) -> list[ScoreProfile]:
    """Profiles of attention that goes through transformers' interface, in the order of the modules."""
    profiles = [ScoreProfile() for _ in modules]
    changes: list[Change] = [
        site_change(
            each.module,
            Site(PlacedBias(each.module, None, each.heads, 0), "auto", each.causal, None, profile),
        )
        for each, profile in zip(modules, profiles, strict=True)
    ]
    changes += [AttributeChange(config, IMPLEMENTATION, NAME) for config in text_configs(model)]
    record = PatchRecord(changes)
    record.apply(model)
    try:
        _read(model, text)
    finally:
        record.revert(model)
    return profiles


def measure_stacks(
    model: PreTrainedModel, unscaled: PatchRecord, stacks: Sequence[BiasStack], text: Tensor
) -> dict[nn.Module, ScoreProfile]:
    """Profiles of attention with a score bias; `unscaled` is a patch that changes none of them."""
    profiles: dict[nn.Module, ScoreProfile] = {}
    unscaled.apply(model)
    try:
        for module in (each.module for stack in stacks for each in stack.attentions):
            forward = vars(module).get(forward_attribute(module))
            if isinstance(forward, BiasedForward) and forward.bias is not None:
                forward.observer = profiles[module] = ScoreProfile()
        _read(model, text)
    finally:
        unscaled.revert(model)
    return profiles


@torch.no_grad()
def _read(model: PreTrainedModel, text: Tensor) -> None:
    with fast_weights(model), evaluation_mode(model):
        for rows in text.split(_ROWS):
            if model.config.is_encoder_decoder:
                model(input_ids=rows, labels=rows)
            else:
                model(input_ids=rows)


def fit_to(profiles: Sequence[ScoreProfile], causal: bool) -> Fit:
    """What fits a bias to the profiles of a stack's layers, or to their mean if they share it."""

    def fit(method: ScoreBiasMethod, geometry: HeadGeometry) -> dict[str, Tensor]:
        distances, _, pairs = profiles[0].mean(causal)
        means = torch.stack([profile.mean(causal)[1] for profile in profiles])
        if not method.per_layer:
            return fit_bias(method, geometry, distances, means.mean(0), pairs)
        fitted = [fit_bias(method, geometry, distances, layer, pairs) for layer in means]
        return {name: torch.stack([one[name] for one in fitted]) for name in fitted[0]}

    return fit
