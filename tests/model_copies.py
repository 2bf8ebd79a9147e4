"""Copies of a tiny model, which `copy.deepcopy` would make more slowly than the model answers."""

import functools
import io
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class _Structure(pickle.Pickler):
    """All of a model but tensors, which pickle copies slowly, and functions, which stay as they are."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.kept: list[Any] = []
        self.places: dict[int, int] = {}

    def persistent_id(self, each: Any) -> int | None:
        if not isinstance(each, Tensor | FunctionType):
            return None
        if id(each) not in self.places:
            self.places[id(each)] = len(self.kept)
            self.kept.append(each)
        return self.places[id(each)]


class _Copy(pickle.Unpickler):
    """Puts copies of the tensors in; what was shared is shared again."""

    def __init__(self, structure: bytes, kept: list[Any]) -> None:
        super().__init__(io.BytesIO(structure))
        self.persistent_load = functools.cache(lambda place: _copied(kept[place]))


def _copied(each: Any) -> Any:
    if not isinstance(each, Tensor):
        return each
    values = each.detach().clone()
    if isinstance(each, torch.nn.Parameter):
        return torch.nn.Parameter(values, requires_grad=each.requires_grad)
    return values


def copier(model: PreTrainedModel) -> Callable[[], PreTrainedModel]:
    """What gives the model again and again, as it is now."""
    file = io.BytesIO()
    structure = _Structure(file)
    structure.dump(model)
    return lambda: _Copy(file.getvalue(), structure.kept).load()
