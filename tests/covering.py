"""Few combinations of parameters that stand for their whole product.

A fault seldom needs three parameters to agree. So `each_pair` takes every pair of values in one row at
least, and `each_value` every value; where two tests of one claim vary the same parameters, `shift` gives
them other rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from itertools import combinations

import pytest

Row = tuple[object, ...]
Chosen = dict[str, int]  # the index of a value by the name of its parameter


class _Rows:
    """Rows that are added one by one, each with as many new pairs as the greedy choice finds."""

    def __init__(self, parameters: Mapping[str, Sequence[object]], shift: int) -> None:
        self.parameters = parameters
        self.shift = shift
        self.rows: list[Row] = []
        self.pairs: set[tuple[str, int, str, int]] = set()
        self.used: Counter[tuple[str, int]] = Counter()

    def add(self, chosen: Chosen) -> None:
        """Fill a row in, and keep it."""
        for name in self.parameters:
            if name not in chosen:
                chosen[name] = self._best(name, chosen)
        self.rows.append(tuple(values[chosen[name]] for name, values in self.parameters.items()))
        self.used.update(chosen.items())
        self.pairs.update((a, chosen[a], b, chosen[b]) for a, b in combinations(self.parameters, 2))

    def is_new(self, first: str, index: int, second: str, other: int) -> bool:
        return not {(first, index, second, other), (second, other, first, index)} & self.pairs

    def _best(self, name: str, chosen: Chosen) -> int:
        """The value with the most new pairs; of those alike, the one seldom used, then the next."""
        number = len(self.parameters[name])

        def rank(index: int) -> tuple[int, int, int]:
            new = sum(self.is_new(name, index, *other) for other in chosen.items())
            return -new, self.used[name, index], (index - self.shift) % number

        return min(range(number), key=rank)


def pairs(parameters: Mapping[str, Sequence[object]], shift: int = 0) -> list[Row]:
    """Rows in which every two values of two parameters meet."""
    design = _Rows(parameters, shift)
    by_number = sorted(parameters, key=lambda name: -len(parameters[name]))
    for a, b in combinations(by_number, 2):
        for i in range(len(parameters[a])):
            for j in range(len(parameters[b])):
                if design.is_new(a, i, b, j):
                    design.add({a: i, b: j})
    return design.rows


def values(parameters: Mapping[str, Sequence[object]], shift: int = 0) -> list[Row]:
    """One row for each value of the longest parameter; other values fill it, in as many pairs as fit."""
    design = _Rows(parameters, shift)
    longest = max(parameters, key=lambda name: len(parameters[name]))
    for index in range(len(parameters[longest])):
        design.add({longest: index})
    return design.rows


def _name(value: object) -> str | None:
    """In the name of a test; None leaves it to pytest."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return str(value) if is_dataclass(value) else None


def each_pair(*, shift: int = 0, **parameters: Sequence[object]) -> pytest.MarkDecorator:
    """Parametrize a test so that every pair of values occurs."""
    return pytest.mark.parametrize(tuple(parameters), pairs(parameters, shift), ids=_name)


def each_value(*, shift: int = 0, **parameters: Sequence[object]) -> pytest.MarkDecorator:
    """Parametrize a test so that every value occurs."""
    return pytest.mark.parametrize(tuple(parameters), values(parameters, shift), ids=_name)
