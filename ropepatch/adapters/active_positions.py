"""What the positions of a model are at this moment, by whatever they came to be so, as a short hash."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.bias_stacks import find_bias_stacks
from ropepatch.adapters.biased import BiasedForward, forward_attribute
from ropepatch.adapters.rotary import find_rotary_modules, frequency_buffer, prefixed
from ropepatch.attention.rotary import RotarySite, ScaledRotary
from ropepatch.attention.row_scales import RowScales
from ropepatch.attention.score_bias import AlibiBias, ScoreBias
from ropepatch.errors import UnsupportedModelError


@torch.no_grad()
def positions_digest(model: PreTrainedModel, lengths: Sequence[int]) -> str | None:
    """Equal for models whose rows of `lengths` tokens get the same positions, in float32.

    Of rotary models, frequencies and attention factors; of the others, slopes, or tables and which
    distances use which of their rows. None for a model whose positions are not understood.
    """
    rows = torch.tensor(lengths, device=model.device)
    try:
        biases = _active_biases(model)
        values = [_bias_values(each, rows) for each in biases] or _rotary_values(model, rows)
    except UnsupportedModelError:
        return None
    # Sorted, as the tables of a stack come in no order.
    parts = sorted(hashlib.sha256(b"".join(map(_content, each))).digest() for each in values)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:8]


def _content(values: Tensor) -> bytes:
    return values.detach().float().cpu().contiguous().numpy().tobytes()


def _active_biases(model: PreTrainedModel) -> list[ScoreBias]:
    """Those that a patch has put in, or else the model's own, each once."""
    forwards = [vars(module).get(forward_attribute(module)) for module in model.modules()]
    live = {id(each.bias): each.bias for each in forwards if isinstance(each, BiasedForward)}
    found = [bias for bias in live.values() if bias is not None]
    return found or [
        bias for stack in find_bias_stacks(model) for bias in stack.biases(None, 1).values()
    ]


def _bias_values(bias: ScoreBias, rows: Tensor) -> list[Tensor]:
    if isinstance(bias, AlibiBias):
        return [bias.slopes(rows)]
    longest = int(rows.max())
    distances = torch.arange(-longest, longest + 1, device=rows.device)
    return [bias.curve(distances, rows)]


def _rotary_values(model: PreTrainedModel, rows: Tensor) -> list[list[Tensor]]:
    scaled = [module for module in model.modules() if isinstance(module, ScaledRotary)]
    if not scaled:
        return [
            _stock_values(found.module, layer_type)
            for found in find_rotary_modules(model)
            for layer_type in found.layer_types
        ]
    return [_site_values(module.stock, site, rows) for module, site in _sites(scaled)]


def _sites(modules: Sequence[ScaledRotary]) -> Iterator[tuple[ScaledRotary, RotarySite]]:
    for module in modules:
        for site in module.sites.values():
            yield module, site


def _site_values(stock: nn.Module, site: RotarySite, rows: Tensor) -> list[Tensor]:
    made = site.rows(RowScales(rows)).frequencies if site.per_row else site.frequencies
    if made is None:
        return _stock_values(stock, site.layer_type)
    return [made.inv_freq, torch.as_tensor(made.attention_factor)]


def _stock_values(module: nn.Module, layer_type: str | None) -> list[Tensor]:
    factor = getattr(module, prefixed("attention_scaling", layer_type), 1.0)
    return [frequency_buffer(module, layer_type), torch.as_tensor(factor)]
