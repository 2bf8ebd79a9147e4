"""The designs that stand for products of parameters hold what they promise."""

from itertools import combinations, product

import pytest
from covering import pairs, values

PARAMETERS = [
    {"kind": range(22), "attention": range(2), "padding": range(3), "cache": range(3)},
    {"kind": range(5), "method": range(5)},
    {"only": range(4)},
    {"padding": range(3), "kind": range(22), "method": range(4)},
    {"a": range(2), "b": range(2), "c": range(2), "d": range(2)},
]
EVERY_DESIGN = pytest.mark.parametrize("parameters", PARAMETERS, ids=str)


@EVERY_DESIGN
def test_every_pair_of_values_meets_in_a_row(parameters):
    rows = pairs(parameters) if len(parameters) > 1 else values(parameters)
    for first, second in combinations(range(len(parameters)), 2):
        wanted = set(product(*[list(parameters.values())[place] for place in (first, second)]))
        assert {(row[first], row[second]) for row in rows} == wanted


def test_pairs_need_few_more_rows_than_the_two_longest_parameters():
    rows = pairs(PARAMETERS[0])
    assert 66 <= len(rows) <= 70  # 22 × 3, of 396 in the product


@EVERY_DESIGN
@pytest.mark.parametrize("shift", [0, 1, 5])
def test_every_value_occurs_in_as_many_rows_as_the_longest_parameter_has_values(parameters, shift):
    rows = values(parameters, shift)
    assert len(rows) == max(map(len, parameters.values()))
    for column, wanted in zip(zip(*rows, strict=True), parameters.values(), strict=True):
        assert set(column) == set(wanted)


def test_pairs_of_short_parameters_meet_where_there_is_room():
    rows = values({"kind": range(22), "method": range(4), "padding": range(2), "given": range(2)})
    for first, second in ((1, 2), (1, 3), (2, 3)):
        met = {(row[first], row[second]) for row in rows}
        assert met == set(product(range(4 if first == 1 else 2), range(2)))


def test_another_shift_gives_other_rows():
    parameters = {"kind": range(22), "method": range(4)}
    met = [set(values(parameters, shift)) for shift in range(4)]
    assert set().union(*met) == set(product(range(22), range(4)))


def test_rows_are_the_same_each_time():
    assert pairs(PARAMETERS[0]) == pairs(PARAMETERS[0])
