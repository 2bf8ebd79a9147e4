"""Vectors by position that are added to embeddings, and tables that are interpolated."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

from ropepatch.errors import MethodOptionError
from ropepatch.methods import make_method
from ropepatch.methods.replacement import TableGeometry
from ropepatch.positions import interpolate_rows

DIMS = (2, 6, 64, 96, 128)
TABLES = ("sinusoidal", "scaled_sinusoidal", "learned")


def geometry(dim: int = 6, rows: int = 8) -> TableGeometry:
    return TableGeometry(dim=dim, rows=rows, original_max_position_embeddings=4)


def vectors(name: str, positions: Tensor, stack: TableGeometry) -> Tensor:
    method = make_method(name)
    return method.vectors(stack, positions, method.initial(stack))


def sinusoid(position: int, dim: int) -> list[float]:
    """arXiv 1706.03762, §3.5, channel by channel."""
    angles = [position / 10000 ** (2 * (channel // 2) / dim) for channel in range(dim)]
    return [(math.cos if c % 2 else math.sin)(angle) for c, angle in enumerate(angles)]


# The division of the paper and the product with a frequency differ in the last bit of the angle:
# by 100000 · 2^-53 radians, 1.1e-11, at the far end.
@pytest.mark.parametrize(
    ("positions", "tolerance"),
    [((0, 1, 2, 100, 4095), 1e-12), ((32_768, 99_999, 100_000), 3e-11)],
    ids=["near", "far"],
)
@pytest.mark.parametrize("dim", DIMS)
def test_sinusoidal_takes_sine_and_cosine_by_turns(dim, positions, tolerance):
    found = vectors("sinusoidal", torch.tensor(positions), geometry(dim))
    expected = torch.tensor([sinusoid(p, dim) for p in positions], dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_sinusoidal_is_that_of_distilbert():
    # Which computes in float64 and keeps float32.
    theirs = torch.empty(512, 64)
    create_sinusoidal_embeddings(512, 64, theirs)
    ours = vectors("sinusoidal", torch.arange(512), geometry(64))
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=1.2e-7)


def test_an_odd_number_of_channels_ends_with_a_sine():
    found = vectors("sinusoidal", torch.tensor([3]), geometry(5))
    expected = torch.tensor([sinusoid(3, 5)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim", DIMS)
def test_scaled_sinusoidal_starts_at_one_over_the_root_of_the_channels(dim):
    found = vectors("scaled_sinusoidal", torch.arange(50), geometry(dim))
    expected = torch.tensor([sinusoid(p, dim) for p in range(50)], dtype=torch.float64)
    torch.testing.assert_close(found, expected / math.sqrt(dim), rtol=0, atol=1e-12)


def test_scaled_sinusoidal_is_proportional_to_its_scalar():
    scalar = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    method, positions = make_method("scaled_sinusoidal"), torch.arange(7)
    found = method.vectors(geometry(), positions, {"scalar": scalar})
    plain = vectors("sinusoidal", positions, geometry())
    assert torch.equal(found, 0.25 * plain)
    found.sum().backward()
    assert float(scalar.grad) == pytest.approx(float(plain.sum()), rel=1e-12)


def test_a_learned_vector_is_its_row():
    method, stack = make_method("learned"), geometry(4, rows=5)
    weight = torch.arange(20.0).view(5, 4).requires_grad_()
    found = method.vectors(stack, torch.tensor([[4, 0], [2, 2]]), {"weight": weight})
    assert found.tolist() == [
        [[16, 17, 18, 19], [0, 1, 2, 3]],
        [[8, 9, 10, 11], [8, 9, 10, 11]],
    ]
    found.sum().backward()
    assert weight.grad.tolist() == [[1] * 4, [0] * 4, [2] * 4, [0] * 4, [1] * 4]


def test_a_learned_table_starts_normal_with_a_deviation_of_2_percent():
    weight = make_method("learned").initial(geometry(64, rows=1000))["weight"]
    assert weight.shape == (1000, 64)
    assert weight.dtype == torch.float64
    # Of 64000 numbers: the mean has a deviation of 0.02/253, the deviation one of 0.02/358.
    assert abs(float(weight.mean())) < 5 * 0.02 / 253
    assert float(weight.std()) == pytest.approx(0.02, abs=5 * 0.02 / 358)


def test_a_learned_table_follows_its_seed():
    first, again, other = (
        make_method("learned", seed=seed).initial(geometry())["weight"] for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_learned_tables_end():
    longest = {name: make_method(name).longest(geometry(rows=300)) for name in TABLES}
    assert longest == {"sinusoidal": None, "scaled_sinusoidal": None, "learned": 300}


@pytest.mark.parametrize("name", TABLES)
def test_vectors_of_a_batch_of_positions_are_those_of_each(name):
    positions = torch.tensor([[0, 1, 7], [5, 5, 2]])
    found = vectors(name, positions, geometry())
    assert found.shape == (2, 3, 6)
    assert torch.equal(found[1, 2], vectors(name, torch.tensor(2), geometry()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 0}, "rows is 0; allowed: a whole number of positions, at least 1"),
        ({"rows": 2.0}, "rows is 2.0; allowed: a whole number of positions, at least 1"),
        ({"dim": 1}, "dim is 1; allowed: a whole number of channels, at least 2"),
    ],
    ids=str,
)
def test_a_table_of_no_size_is_refused(wrong, message):
    with pytest.raises(MethodOptionError) as refused:
        TableGeometry(**{"rows": 4, "dim": 4, "original_max_position_embeddings": 4, **wrong})
    assert str(refused.value) == message


tables = st.integers(0, 1000).map(
    lambda seed: torch.randn(9, 5, generator=torch.Generator().manual_seed(seed))
)


@given(table=tables, places=st.lists(st.integers(0, 8), min_size=1))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_whole_place_has_the_very_row_of_the_table(dtype, table, places):
    table = table.to(dtype)
    found = interpolate_rows(table, torch.tensor(places, dtype=torch.float64))
    assert found.dtype == torch.float64
    assert torch.equal(found.to(dtype), table[places])


@given(table=tables, places=st.lists(st.floats(0, 8), min_size=1))
def test_between_two_rows_their_vectors_are_blended_by_distance(table, places):
    found = interpolate_rows(table, torch.tensor(places, dtype=torch.float64))
    for row, place in zip(found.tolist(), places, strict=True):
        below, above = math.floor(place), math.ceil(place)
        share = place - below
        pairs = zip(table[below].tolist(), table[above].tolist(), strict=True)
        expected = [(1 - share) * low + share * high for low, high in pairs]
        assert row == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(table=tables, place=st.floats(8, 1e6))
def test_beyond_the_last_row_is_the_last_row(table, place):
    found = interpolate_rows(table, torch.tensor([place], dtype=torch.float64))
    assert torch.equal(found.float()[0], table[-1])


def test_a_table_of_one_row_has_that_row_everywhere():
    table = torch.tensor([[1.0, -2.0]])
    found = interpolate_rows(table, torch.tensor([0.0, 0.5, 3.0]))
    assert found.tolist() == [[1.0, -2.0]] * 3


def test_linear_reads_a_table_of_positions_at_a_fraction_of_itself():
    # Rows 0, 10, 20 … at factor 4: position 5 lies at 1.25, and so is worth 12.5.
    table = 10 * torch.arange(4.0)[:, None]
    places = make_method("linear", factor=4).absolute(torch.tensor([[0, 4, 5, 12, 15]]))
    assert interpolate_rows(table, places).tolist() == [[[0], [10], [12.5], [30], [30]]]


def test_gradients_of_interpolated_rows_reach_both_neighbours():
    table = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    interpolate_rows(table, torch.tensor([0.25])).sum().backward()
    assert table.grad.tolist() == [[0.75], [0.25], [0.0]]
