"""What must hold of the rotary methods at every geometry, whatever their formulas."""

import itertools

import pytest
import torch
from covering import each_pair
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ropepatch.methods import RotaryGeometry, make_method, methods_for

LISTS = {"short_factor": [1.0] * 32, "long_factor": [1.5] * 32}
NEUTRAL = {  # the options with which a method changes nothing at factor 1
    "longrope": {"short_factor": [1.0] * 32, "long_factor": [1.0] * 32},
    "power": {"exponent": 0},
    "proportional": {"proportion": 1},
    "truncated": {"keep_above": 1e-9, "stop_below": 1e-9, "middle": 1e-9},
}
LENGTH_DEPENDENT = ("dynamic_linear", "dynamic_ntk", "dynamic_yarn", "longrope")

SCALING = methods_for("rotary", replacing=False)
LLAMA = RotaryGeometry(dim=64, base=1e4, original_max_position_embeddings=2048)
geometries = st.builds(
    RotaryGeometry,
    dim=st.integers(2, 64).map(lambda pairs: 2 * pairs),
    base=st.floats(100.0, 1e7),
    original_max_position_embeddings=st.integers(64, 16384),
)
factors = st.floats(1.0, 64.0)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@given(geometry=geometries, factor=factors)
def test_linear_divides_every_frequency_by_the_factor(geometry, factor):
    found = make_method("linear", factor=factor).rotary(geometry).inv_freq
    assert torch.equal(found, geometry.inv_freq / factor)


@each_pair(name=SCALING, base=[1e4, 5e5], length=[256, 2048, 8192])
def test_factor_1_leaves_frequencies_and_softmax_bit_identical(name, base, length):
    geometry = RotaryGeometry(dim=64, base=base, original_max_position_embeddings=length)
    found = make_method(name, factor=1, **NEUTRAL.get(name, {})).rotary(geometry)
    assert torch.equal(found.inv_freq, geometry.inv_freq)
    assert float(found.attention_factor) == 1.0


@given(geometry=geometries, share=st.floats(0.0, 1.0))
@pytest.mark.parametrize("name", ["dynamic_linear", "dynamic_ntk", "dynamic_yarn"])
def test_dynamic_methods_leave_trained_lengths_bit_identical(name, geometry, share):
    T = max(1, round(share * geometry.original_max_position_embeddings))
    found = make_method(name).rotary(geometry, torch.tensor(T))
    assert torch.equal(found.inv_freq, geometry.inv_freq)
    assert float(found.attention_factor) == 1.0


@given(geometry=geometries, factor=st.integers(1, 64))
@pytest.mark.parametrize("name", ["linear", "ntk", "yarn"])
def test_dynamic_methods_at_the_target_length_equal_the_static_ones(name, geometry, factor):
    T = torch.tensor(factor * geometry.original_max_position_embeddings)
    dynamic = make_method(f"dynamic_{name}").rotary(geometry, T)
    static = make_method(name, factor=factor).rotary(geometry)
    assert_equal(dynamic.inv_freq, static.inv_freq)
    assert float(dynamic.attention_factor) == pytest.approx(float(static.attention_factor))


@given(
    lengths=st.lists(
        st.lists(st.integers(1, 65536), min_size=3, max_size=3), min_size=1, max_size=4
    )
)
@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_a_batch_of_lengths_equals_one_by_one(name, lengths):
    method = make_method(name, factor=4, **(LISTS if name == "longrope" else {}))
    batch = method.rotary(LLAMA, torch.tensor(lengths))
    factors = torch.as_tensor(batch.attention_factor).broadcast_to(len(lengths), 3)
    for row, column in itertools.product(range(len(lengths)), range(3)):
        one = method.rotary(LLAMA, torch.tensor(lengths[row][column]))
        assert_equal(batch.inv_freq[row, column], one.inv_freq)
        assert float(factors[row, column]) == pytest.approx(float(one.attention_factor), rel=1e-12)


@given(geometry=geometries, factor=factors)
@pytest.mark.parametrize("name", sorted({*SCALING} - {"base_change", "longrope"}))
def test_no_pair_ever_turns_faster_than_in_the_base_model(name, geometry, factor):
    T = torch.tensor(round(factor * geometry.original_max_position_embeddings))
    found = make_method(name, factor=factor).rotary(geometry, T).inv_freq
    assert (found <= geometry.inv_freq * (1 + 1e-15)).all()


@given(geometry=geometries, factor=factors, alpha=st.none() | st.floats(1.0, 64.0))
def test_ntk_keeps_the_first_pair_and_slows_the_last_exactly_alpha_times(geometry, factor, alpha):
    found = make_method("ntk", factor=factor, alpha=alpha).rotary(geometry).inv_freq
    slowed = (geometry.inv_freq / found)[[0, -1]]
    assert_equal(
        slowed, torch.tensor([1.0, factor if alpha is None else alpha], dtype=torch.float64)
    )
