"""T5's buckets against stock, and which distances keep their trained bucket under a method."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import UMT5Config
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from ropepatch.errors import MethodOptionError, UnsupportedMechanismError
from ropepatch.methods import RelativeGeometry, make_method, methods_for

NEAR = torch.arange(-5000, 5001)
ENCODER, DECODER = (
    RelativeGeometry(bidirectional=both, original_max_position_embeddings=512)
    for both in (True, False)
)
SHAPES = [(32, 128), (32, 256), (64, 128), (16, 20), (8, 1000), (4, 6), (6, 128), (320, 4096)]


@st.composite
def geometries(draw) -> RelativeGeometry:
    both = draw(st.booleans())
    per_direction = draw(st.integers(2, 64))
    return RelativeGeometry(
        num_buckets=2 * per_direction if both else per_direction,
        max_distance=draw(st.integers(per_direction // 2 + 1, 2000)),
        bidirectional=both,
        original_max_position_embeddings=512,
    )


factors = st.floats(1.0, 64.0)
scaling = pytest.mark.parametrize("name", methods_for("relative", replacing=False))


def stock(geometry: RelativeGeometry, relative_position: torch.Tensor) -> torch.Tensor:
    return T5Attention._relative_position_bucket(
        relative_position, geometry.bidirectional, geometry.num_buckets, geometry.max_distance
    )


def kept(name: str, factor: float, geometry: RelativeGeometry) -> list[int]:
    """The distances to the past, up to 5000, whose bucket stock has trained for them."""
    past = -torch.arange(5001)
    found = make_method(name, factor=factor).relative(geometry, past)
    return (found == stock(geometry, past)).nonzero().flatten().tolist()


@pytest.mark.parametrize("both", [True, False], ids=["bidirectional", "unidirectional"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_buckets_are_those_of_t5(shape, both):
    geometry = RelativeGeometry(
        num_buckets=shape[0],
        max_distance=shape[1],
        bidirectional=both,
        original_max_position_embeddings=512,
    )
    assert torch.equal(geometry.buckets(NEAR), stock(geometry, NEAR))


@pytest.mark.parametrize("is_decoder", [True, False])
def test_buckets_are_those_of_umt5(is_decoder):
    config = UMT5Config(d_model=8, d_kv=4, num_heads=2, is_decoder=is_decoder)
    umt5 = UMT5Attention(config, has_relative_attention_bias=True)
    geometry = DECODER if is_decoder else ENCODER
    assert torch.equal(geometry.buckets(NEAR), umt5._relative_position_bucket(NEAR))


def test_a_matrix_of_positions_has_the_buckets_of_its_distances():
    matrix = torch.arange(700)[None, :] - torch.arange(300)[:, None]
    assert torch.equal(ENCODER.buckets(matrix), stock(ENCODER, matrix))


def test_buckets_of_short_integers_are_long():
    assert ENCODER.buckets(NEAR.int()).dtype == torch.long


@given(geometry=geometries())
@scaling
def test_factor_1_leaves_every_bucket_as_it_was(name, geometry):
    found = make_method(name, factor=1).relative(geometry, NEAR)
    assert torch.equal(found, stock(geometry, NEAR))


# Past distances of a 32-bucket encoder up to 128: buckets of their own below 8, then borders at
# 8·16^(k/8) = 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5. A decoder: below 16, then 16·8^(k/16).


def test_linear_by_4_keeps_distances_0_and_1_and_those_beyond_every_border():
    # D > 360 is more than 90 after division and rounding up, past the last border.
    assert kept("linear", 4, ENCODER) == [0, 1, *range(361, 5001)]


def test_linear_by_4_in_a_decoder_keeps_distances_0_and_1_and_those_beyond_every_border():
    # The last border is 16·8^(15/16) = 112.4: D > 448 is more than 112.
    assert kept("linear", 4, DECODER) == [0, 1, *range(449, 5001)]


def test_linear_by_a_half_more_keeps_what_rounds_up_into_its_own_bucket():
    # 2/1.5 rounds up to 2; 11/1.5 to 8, the bucket of 8 to 11; D > 135 is more than 90.
    assert kept("linear", 1.5, ENCODER) == [0, 1, 2, 11, *range(136, 5001)]


def test_log_by_4_keeps_what_is_short_or_beyond_every_border():
    # Borders move out to 8·64^(k/8) = 8, 13.5, 22.6 … 304.4. 14 and 15 lie between the second and
    # third border of either spacing.
    assert kept("log", 4, ENCODER) == [*range(12), 14, 15, *range(305, 5001)]


def test_log_by_4_in_a_decoder_keeps_what_is_short_or_beyond_every_border():
    # From 16, 18.2, 20.7 … to 16·32^(k/16) = 16, 19.9, 24.7 … 412.3.
    assert kept("log", 4, DECODER) == [*range(19), 20, *range(413, 5001)]


@given(geometry=geometries(), factor=factors)
def test_log_keeps_distances_with_a_bucket_of_their_own_at_every_factor(geometry, factor):
    share = 4 if geometry.bidirectional else 2
    short = range(geometry.num_buckets // share)
    assert kept("log", factor, geometry)[: len(short)] == [*short]


@given(geometry=geometries(), factor=factors)
def test_log_is_stock_with_a_longer_maximum_distance(geometry, factor):
    reach = geometry.max_distance * factor
    reach = int(reach) + (reach > int(reach))
    shape = (geometry.bidirectional, geometry.num_buckets, reach)
    expected = T5Attention._relative_position_bucket(NEAR, *shape)
    assert torch.equal(make_method("log", factor=factor).relative(geometry, NEAR), expected)


@given(geometry=geometries(), factor=factors)
def test_stock_with_the_native_maximum_distance_of_log_makes_the_same_buckets(geometry, factor):
    method = make_method("log", factor=factor)
    native = replace(geometry, max_distance=method.native_relative(geometry))
    assert torch.equal(stock(native, NEAR), method.relative(geometry, NEAR))


def test_linear_buckets_have_no_native_maximum_distance():
    assert make_method("linear", factor=4).native_relative(ENCODER) is None


@given(geometry=geometries(), factor=st.integers(1, 64))
def test_linear_gives_multiples_of_the_factor_their_trained_bucket(geometry, factor):
    found = make_method("linear", factor=factor).relative(geometry, NEAR * factor)
    assert torch.equal(found, stock(geometry, NEAR))


@given(geometry=geometries(), factor=factors)
@scaling
def test_only_a_token_itself_is_in_bucket_0(name, geometry, factor):
    seen = NEAR if geometry.bidirectional else NEAR[NEAR <= 0]
    found = make_method(name, factor=factor).relative(geometry, seen)
    assert seen[found == 0].tolist() == [0]


@given(shape=st.sampled_from(SHAPES), factor=factors)
@scaling
def test_no_distance_falls_on_the_untrained_bucket_of_the_future(name, shape, factor):
    geometry = RelativeGeometry(
        num_buckets=shape[0],
        max_distance=shape[1],
        bidirectional=True,
        original_max_position_embeddings=512,
    )
    found = make_method(name, factor=factor).relative(geometry, NEAR)
    assert shape[0] // 2 not in found


@given(factor=factors)
@scaling
def test_past_and_future_are_mirror_images_half_a_table_apart(name, factor):
    ahead = torch.arange(1, 5001)
    method = make_method(name, factor=factor)
    past, future = (method.relative(ENCODER, at) for at in (-ahead, ahead))
    assert torch.equal(future, past + 16)


@given(geometry=geometries(), factor=factors)
@scaling
def test_buckets_never_fall_with_the_distance(name, geometry, factor):
    found = make_method(name, factor=factor).relative(geometry, -torch.arange(5001))
    assert (found.diff() >= 0).all()


@given(geometry=geometries(), factor=factors)
@scaling
def test_a_scaled_bucket_is_never_beyond_the_trained_one(name, geometry, factor):
    past = -torch.arange(5001)
    found = make_method(name, factor=factor).relative(geometry, past)
    assert (found <= stock(geometry, past)).all()


def test_a_method_that_does_not_serve_relative_buckets_names_those_that_do():
    with pytest.raises(UnsupportedMechanismError) as refused:
        make_method("yarn").relative(ENCODER, NEAR)
    assert str(refused.value) == (
        "'yarn' does not rescale relative buckets; methods that rescale: linear, log; "
        "methods that replace: alibi, kerple_log, kerple_power, learned, nope, sandwich"
    )


@pytest.mark.parametrize(
    ("given_shape", "message"),
    [
        ({"num_buckets": 33}, "num_buckets is 33; allowed: an even number when bidirectional"),
        ({"num_buckets": 2}, "num_buckets is 2; allowed: a whole number of buckets, at least 4"),
        ({"num_buckets": 32.0}, "num_buckets is 32.0; allowed: a whole number of buckets"),
        (
            {"num_buckets": 1, "bidirectional": False},
            "num_buckets is 1; allowed: a whole number of buckets, at least 2",
        ),
        ({"max_distance": 8}, "max_distance is 8; allowed: a whole number of tokens, at least 9"),
        (
            {"max_distance": 16, "bidirectional": False},
            "max_distance is 16; allowed: a whole number of tokens, at least 17",
        ),
        ({"max_distance": None}, "max_distance is None; allowed: a whole number of tokens"),
        (
            {"original_max_position_embeddings": 0},
            "original_max_position_embeddings is 0; allowed: a whole number of tokens, at least 1",
        ),
    ],
    ids=str,
)
def test_a_shape_that_the_formula_cannot_take_is_refused(given_shape, message):
    usual = {"bidirectional": True, "original_max_position_embeddings": 512}
    with pytest.raises(MethodOptionError) as refused:
        RelativeGeometry(**{**usual, **given_shape})
    assert str(refused.value).startswith(message)
