"""What the positions of a model are at this moment, by whatever they came to be so, as a short hash."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.bias_stacks import each_once, find_bias_stacks
from ropepatch.adapters.biased import BiasedForward, forward_attribute
from ropepatch.adapters.interface import Site, site_of
from ropepatch.adapters.rotary import (
    find_rotary_modules,
    frequency_buffer,
    has_rotary_modules,
    prefixed,
)
from ropepatch.adapters.tables import find_tables
from ropepatch.attention.position_modules import TableModule
from ropepatch.attention.rotary import RotarySite, ScaledRotary
from ropepatch.attention.row_scales import RowScales
from ropepatch.attention.score_bias import AlibiBias, ScoreBias
from ropepatch.errors import UnsupportedModelError
from ropepatch.methods.replacement import Replacement


@torch.no_grad()
def positions_digest(model: PreTrainedModel, lengths: Sequence[int]) -> str | None:
    """Equal for models whose rows of `lengths` tokens get the same positions, in float32.

    Of rotary models, frequencies and attention factors; of the others, slopes, tables and which
    distances or positions use which of their rows; with all that a patch has put in. None
    for a model whose positions are not understood.
    """
    rows = torch.tensor(lengths, device=model.device)
    try:
        values = [_bias_values(each, rows) for each in score_biases(model) or _own_biases(model)]
        if not find_bias_stacks(model):
            values += _rotary_values(model, rows) if has_rotary_modules(model) else []
            values += _placed_values(model, int(rows.max()))
    except UnsupportedModelError:
        return None
    if not values:
        return None
    # Sorted, as the tables of a stack come in no order.
    parts = sorted(hashlib.sha256(b"".join(map(_content, each))).digest() for each in values)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:8]


def _content(values: Tensor) -> bytes:
    return values.detach().float().cpu().contiguous().numpy().tobytes()


def score_biases(model: nn.Module) -> list[ScoreBias]:
    """The score biases of attention that a patch has put in, scaled or not, each once."""
    forwards = [vars(module).get(forward_attribute(module)) for module in model.modules()]
    sites = map(site_of, model.modules())
    carriers: list[Site | BiasedForward] = [each for each in sites if each is not None]
    carriers += [each for each in forwards if isinstance(each, BiasedForward)]
    return each_once(each.bias for each in carriers if each.bias is not None)


def _own_biases(model: PreTrainedModel) -> list[ScoreBias]:
    stacks = find_bias_stacks(model)
    return each_once(bias for stack in stacks for bias in stack.biases(None, 1).values())


def scaled_modules(model: nn.Module) -> list[ScaledRotary]:
    """The rotary modules that a patch has put in."""
    return [module for module in model.modules() if isinstance(module, ScaledRotary)]


def _bias_values(bias: ScoreBias, rows: Tensor) -> list[Tensor]:
    if isinstance(bias, AlibiBias):
        return [bias.slopes(rows)]
    longest = int(rows.max())
    distances = torch.arange(-longest, longest + 1, device=rows.device)
    return [bias.curve(distances, rows)]


def _placed_values(model: PreTrainedModel, longest: int) -> list[list[Tensor]]:
    """What a patch adds to embeddings or takes from products, and the tables that it leaves."""
    decays = [site.log_decay for site in map(site_of, model.modules()) if site is not None]
    values = [[decay] for decay in decays if decay is not None]
    for module in model.modules():
        if isinstance(module, TableModule):
            rows = module.method.longest(module.geometry) or longest
            places = torch.arange(min(rows, longest), device=model.device)
            values.append([module(places)])
    for table in find_tables(model):
        forward = vars(table.module).get(forward_attribute(table.module))
        if forward is None:
            values.append([table.module.weight])
        elif not isinstance(forward.method, Replacement):
            places = torch.arange(round(table.rows * forward.method.factor), device=model.device)
            values.append([forward.vectors(places[None])])
    return values


def _rotary_values(model: PreTrainedModel, rows: Tensor) -> list[list[Tensor]]:
    scaled = scaled_modules(model)
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
