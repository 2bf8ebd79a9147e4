"""The public function of score biases, which needs no model."""

from typing import Any

import torch
from torch import Tensor

from ropepatch.errors import MethodOptionError, UnsupportedMechanismError
from ropepatch.methods.base import Method, require_count
from ropepatch.methods.registry import chosen_method, method_class, methods_for
from ropepatch.methods.replacement import HeadGeometry, Parameters, Replacement, ScoreBiasMethod


def score_bias(
    method: str | Method,
    *,
    num_heads: int,
    query_length: int,
    key_length: int,
    bidirectional: bool = False,
    original_max_position_embeddings: int = 1,
    parameters: Parameters | None = None,
    **options: Any,
) -> Tensor:
    """What a method adds to the scores, float64. (num_heads, query_length, key_length)

    The queries are the last of the keys; unless `bidirectional`, keys in their future are −inf.
    `parameters` are those that the method trains, by default as they start. The trained length is
    read by methods of one's own only.
    """
    chosen = chosen_method(method, options)
    if not isinstance(chosen, ScoreBiasMethod):
        biases = [name for name in methods_for() if issubclass(method_class(name), ScoreBiasMethod)]
        there = {"alibi", "relative"} & {*chosen.mechanisms()}
        does = (
            "scales the bias of a checkpoint and brings none of its own; methods that bring one"
            if there and not isinstance(chosen, Replacement)
            else "adds no bias to scores; methods that do"
        )
        raise UnsupportedMechanismError(f"{chosen.name!r} {does}: {', '.join(biases)}")
    require_count("query_length", query_length, "tokens")
    require_count("key_length", key_length, "tokens", at_least=query_length)
    geometry = HeadGeometry(
        num_heads=num_heads,
        bidirectional=bidirectional,
        original_max_position_embeddings=original_max_position_embeddings,
    )
    distances = torch.arange(1 - query_length, key_length)
    bias = chosen.bias(geometry, distances.double(), _checked(chosen, geometry, parameters))
    if not bidirectional:
        bias = bias.masked_fill(distances < 0, -torch.inf)
    first = key_length - query_length
    queries = torch.arange(first, key_length)[:, None]
    return bias[:, queries - torch.arange(key_length) + query_length - 1]


def _checked(
    method: ScoreBiasMethod, geometry: HeadGeometry, given: Parameters | None
) -> Parameters:
    """The parameters, given or as they start. Raises MethodOptionError for others than those."""
    start = method.initial(geometry)
    if given is None:
        return start
    shapes, expected = (
        {name: tuple(value.shape) for name, value in each.items()} for each in (given, start)
    )
    if shapes != expected:
        raise MethodOptionError(
            f"parameters are of shapes {shapes}; allowed for {method.name!r}: {expected}"
        )
    return given
