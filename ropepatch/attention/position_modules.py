"""Encodings that a patch puts into a model, as modules: what trains in them are ordinary parameters."""

import torch
from torch import Tensor, nn

from ropepatch.errors import LengthError, MethodOptionError
from ropepatch.methods.replacement import HeadGeometry, ScoreBiasMethod, TableGeometry, TableMethod


class BiasModule(nn.Module):
    """A score bias by distance, for all layers of a stack."""

    def __init__(
        self,
        method: ScoreBiasMethod,
        geometry: HeadGeometry,
        fitted: dict[str, Tensor] | None = None,
    ) -> None:
        """`fitted` are parameters to start from, with a dimension for layers if the method is per layer.

        Raises MethodOptionError for `per_layer` where nothing trains, as it would do nothing.
        """
        super().__init__()
        self.method, self.geometry = method, geometry
        starts = method.initial(geometry) if fitted is None else fitted
        if method.per_layer and not starts:
            raise MethodOptionError(
                f"per_layer is True, but {method.name!r} with these options has no parameters of which "
                "each layer could have its own; leave per_layer out"
            )
        for name, start in starts.items():
            if method.per_layer and fitted is None:
                start = start.expand(geometry.num_layers, *start.shape).clone()
            self.register_parameter(name, nn.Parameter(start.float()))

    def forward(self, distances: Tensor, layer: int) -> Tensor:
        """The bias of one layer at distances query − key, float32. (n,) → (heads, n)"""
        held: dict[str, Tensor] = dict(self.named_parameters(recurse=False))
        for name, (low, high) in self.method.limits.items():
            parameter = held[name]
            if self.training and torch.is_grad_enabled():
                # `data`, as the layers before this one have saved the parameter for their gradient.
                parameter.data.clamp_(low, high)
            # Elsewhere it may lie beyond, and a gradient of 0 would keep it there: it gets the limit's.
            held[name] = parameter.clamp(low, high).detach() + (parameter - parameter.detach())
        if self.method.per_layer:
            held = {name: parameter[layer] for name, parameter in held.items()}
        held = {name: parameter.float() for name, parameter in held.items()}
        # Attention is float32 inside, whatever autocast would make of the bias.
        with torch.autocast(distances.device.type, enabled=False):
            return self.method.bias(self.geometry, distances.float(), held).contiguous()


class TableModule(nn.Module):
    """Vectors by position, to be added to embeddings."""

    def __init__(self, method: TableMethod, geometry: TableGeometry) -> None:
        super().__init__()
        self.method, self.geometry = method, geometry
        for name, start in method.initial(geometry).items():
            self.register_parameter(name, nn.Parameter(start.float()))

    def forward(self, position_ids: Tensor) -> Tensor:
        """Vectors of positions, (…) → (…, dim), float32. Raises LengthError for one that has none."""
        if not torch.compiler.is_compiling():
            require_positions(self.method.name, position_ids, self.method.longest(self.geometry))
        held = {name: p.float() for name, p in self.named_parameters(recurse=False)}
        return self.method.vectors(self.geometry, position_ids, held)


def require_positions(what: str, position_ids: Tensor, rows: int | None, first: int = 0) -> None:
    """Raise LengthError for positions that are no whole numbers, or not from `first` to below `rows`."""
    if position_ids.is_floating_point():
        raise LengthError(
            f"position_ids are of {position_ids.dtype}; allowed: whole numbers; give position_ids.long()"
        )
    if not position_ids.numel():
        return
    low, high = (int(each) for each in position_ids.aminmax())
    if low < first:
        raise LengthError(f"position {low} is asked for, but {what} has none before {first}")
    if rows is not None and high >= rows:
        raise LengthError(
            f"position {high} is asked for, but {what} has {rows} positions; patch the model for more "
            "(factor= or target_length=), or read fewer tokens"
        )
