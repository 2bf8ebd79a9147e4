"""ALiBi's slopes against the paper's recursion and transformers, and what methods make of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from ropepatch import alibi_slopes
from ropepatch.errors import MethodOptionError, UnsupportedMechanismError
from ropepatch.methods import AlibiGeometry, make_method, methods_for

HEADS = range(1, 129)
SINGLE = 1e-5  # float32: 6e-8 in the base that is raised to powers of up to 128

head_counts = st.integers(2, 128)
factors = st.floats(1.0, 64.0)


def paper(heads: int) -> list[float]:
    """The authors' recursion (arXiv 2108.12409, §3 and footnote 8), in Python floats."""
    if heads & (heads - 1) == 0:
        ratio = 2 ** (-8 / heads)
        return [ratio**h for h in range(1, heads + 1)]
    lower = 2 ** math.floor(math.log2(heads))
    return paper(lower) + paper(2 * lower)[0::2][: heads - lower]


def assert_equal(found: Tensor, expected: list[float]) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def geometry(heads: int = 8, length: int = 256) -> AlibiGeometry:
    return AlibiGeometry(num_heads=heads, original_max_position_embeddings=length)


def test_slopes_are_those_of_the_paper():
    for heads in HEADS:
        assert_equal(alibi_slopes(heads), paper(heads))


@pytest.mark.parametrize(
    ("heads", "negative_exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (3, [4, 8, 2]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_by_hand(heads, negative_exponents):
    assert_equal(alibi_slopes(heads), [2.0**-x for x in negative_exponents])


def test_slopes_are_those_of_bloom():
    for heads in HEADS:
        # BLOOM's bias of key 1 is the slope itself.
        bloom = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        torch.testing.assert_close(alibi_slopes(heads).float(), bloom, rtol=SINGLE, atol=0)


@pytest.mark.parametrize("bias_max", [1, 4, 8, 16])
def test_slopes_are_those_of_mpt_at_its_bias_max(bias_max):
    for heads in HEADS:
        # MPT's bias of the last key but one is minus the slope.
        mpt = -build_mpt_alibi_tensor(heads, 2, alibi_bias_max=bias_max)[:, 0, 0]
        found = AlibiGeometry(
            num_heads=heads, bias_max=bias_max, original_max_position_embeddings=256
        ).slopes
        torch.testing.assert_close(found.float(), mpt, rtol=SINGLE, atol=0)


@pytest.mark.parametrize("name", methods_for("alibi", replacing=False))
def test_factor_1_leaves_slopes_bit_identical(name):
    for heads in HEADS[1:]:
        found = make_method(name, factor=1).alibi(geometry(heads))
        assert torch.equal(found, geometry(heads).slopes), heads


@given(heads=head_counts, factor=factors)
def test_linear_divides_every_slope_by_the_factor(heads, factor):
    found = alibi_slopes(heads, "linear", factor=factor)
    assert_equal(found, [slope / factor for slope in paper(heads)])


def test_ntk_by_hand():
    # Slopes 2^-2, 2^-4, 2^-6, 2^-8; at s = 8 they fall by 8^0, 8^(1/3), 8^(2/3), 8^1.
    assert_equal(alibi_slopes(4, "ntk", factor=8), [2**-2, 2**-5, 2**-8, 2**-11])


def test_ntk_of_heads_between_powers_of_two_goes_by_the_slope_not_by_the_head():
    # Slopes 2^-4, 2^-8, 2^-2; from the steepest, 2^-2, to the gentlest, 2^-8, the first is a third.
    assert_equal(alibi_slopes(3, "ntk", factor=8), [2**-5, 2**-11, 2**-2])


@pytest.mark.parametrize("heads", [2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("factor", [1.5, 4, 16])
def test_ntk_of_a_power_of_two_divides_head_h_by_the_factor_to_its_rank(heads, factor):
    ranks = [h / (heads - 1) for h in range(heads)]
    expected = [m * factor**-rank for m, rank in zip(paper(heads), ranks, strict=True)]
    assert_equal(alibi_slopes(heads, "ntk", factor=factor), expected)


@given(heads=head_counts, factor=factors, alpha=st.none() | factors)
def test_ntk_keeps_the_steepest_slope_and_divides_the_gentlest(heads, factor, alpha):
    unscaled = alibi_slopes(heads)
    scaled = alibi_slopes(heads, "ntk", factor=factor, alpha=alpha)
    assert scaled[unscaled.argmax()] == unscaled.max()
    gentlest = unscaled.min() / (factor if alpha is None else alpha)
    assert float(scaled[unscaled.argmin()]) == pytest.approx(float(gentlest), rel=1e-12)


@given(heads=head_counts, factor=factors)
def test_ntk_keeps_the_order_of_the_heads(heads, factor):
    scaled = alibi_slopes(heads, "ntk", factor=factor)
    assert torch.equal(scaled.argsort(), alibi_slopes(heads).argsort())


def test_dynamic_linear_scales_every_row_by_its_own_length():
    found = make_method("dynamic_linear").alibi(
        geometry(2, 256), torch.tensor([100, 256, 512, 640])
    )
    expected = [[1 / 16, 1 / 256], [1 / 16, 1 / 256], [1 / 32, 1 / 512], [1 / 40, 1 / 640]]
    assert_equal(found, expected)


def test_dynamic_linear_of_one_length_gives_a_slope_per_head():
    found = alibi_slopes(2, "dynamic_linear", original_max_position_embeddings=256, seq_len=1024)
    assert_equal(found, [1 / 64, 1 / 1024])


@given(length=st.integers(1, 256))
def test_dynamic_linear_leaves_trained_lengths_bit_identical(length):
    found = make_method("dynamic_linear").alibi(geometry(), torch.tensor(length))
    assert torch.equal(found, geometry().slopes)


@given(factor=st.integers(1, 64))
def test_dynamic_linear_at_the_target_length_equals_linear(factor):
    dynamic = make_method("dynamic_linear").alibi(geometry(), torch.tensor(256 * factor))
    assert torch.equal(dynamic, alibi_slopes(8, "linear", factor=factor))


def test_a_static_method_reads_no_length():
    lengths = {"original_max_position_embeddings": 256, "seq_len": 4096}
    assert torch.equal(
        alibi_slopes(8, "linear", factor=2, **lengths), alibi_slopes(8, "linear", factor=2)
    )


def test_a_method_instance_gives_what_its_name_gives():
    assert torch.equal(
        alibi_slopes(8, make_method("ntk", factor=4)), alibi_slopes(8, "ntk", factor=4)
    )


@pytest.mark.parametrize(
    "name", sorted({*methods_for(replacing=False)} - {*methods_for("alibi")} - {"longrope"})
)
def test_a_method_that_does_not_serve_alibi_names_those_that_do(name):
    with pytest.raises(UnsupportedMechanismError) as refused:
        alibi_slopes(8, name)
    assert str(refused.value) == (
        f"{name!r} does not rescale ALiBi; methods that rescale: dynamic_linear, linear, ntk; "
        "methods that replace: kerple_log, kerple_power, nope, sandwich, t5_bias"
    )


def test_a_method_that_follows_the_length_asks_for_the_trained_one():
    with pytest.raises(MethodOptionError, match=r"give original_max_position_embeddings"):
        alibi_slopes(8, "dynamic_linear", seq_len=1024)


def test_options_without_a_method_are_refused():
    with pytest.raises(MethodOptionError, match=r"^factor given without a method"):
        alibi_slopes(8, factor=4)


def test_ntk_of_a_single_head_is_refused():
    with pytest.raises(MethodOptionError, match=r"^num_heads is 1; allowed: at least 2 for 'ntk'"):
        alibi_slopes(1, "ntk", factor=4)


@pytest.mark.parametrize("heads", [0, -8, 8.0, "8", True, None], ids=repr)
def test_what_is_no_number_of_heads_is_refused(heads):
    with pytest.raises(MethodOptionError) as refused:
        alibi_slopes(heads)
    assert str(refused.value) == (
        f"num_heads is {heads!r}; allowed: a whole number of heads, at least 1"
    )


@pytest.mark.parametrize("bias_max", [0, -8, math.nan, "8", None], ids=repr)
def test_a_bias_max_that_is_no_number_above_0_is_refused(bias_max):
    with pytest.raises(MethodOptionError, match=r"^bias_max is .*; allowed: a finite number > 0"):
        AlibiGeometry(num_heads=8, bias_max=bias_max, original_max_position_embeddings=256)


@pytest.mark.parametrize("given_length", [{"seq_len": 0}, {"original_max_position_embeddings": 0}])
def test_a_length_of_no_tokens_is_refused(given_length):
    with pytest.raises(MethodOptionError, match=r"is 0; allowed: a whole number of tokens"):
        alibi_slopes(8, "linear", **given_length)
