"""Biases by distance, against loops over Python floats that follow the papers."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from ropepatch import score_bias
from ropepatch.errors import MethodOptionError, UnsupportedMechanismError
from ropepatch.methods import make_method
from ropepatch.methods.replacement import HeadGeometry

HEADS = (1, 2, 3, 6, 8, 12, 16, 20)
FAR = (0, 1, 2, 3, 7, 8, 13, 16, 31, 100, 127, 128, 129, 1000, 4095, 32_768, 99_999, 100_000)
DISTANCES = (*(-d for d in reversed(FAR[1:])), *FAR)
BIASES = ("alibi", "kerple_log", "kerple_power", "sandwich", "t5_bias")

per_heads = pytest.mark.parametrize("heads", HEADS)


def geometry(heads: int, bidirectional: bool = True) -> HeadGeometry:
    return HeadGeometry(
        num_heads=heads, bidirectional=bidirectional, original_max_position_embeddings=256
    )


def biases(name: str, heads: int, parameters: dict[str, Tensor] | None = None, **options) -> Tensor:
    """What the method makes of DISTANCES in an encoder. (heads, distances)"""
    method, stack = make_method(name, **options), geometry(heads)
    start = method.initial(stack) if parameters is None else parameters
    return method.bias(stack, torch.tensor(DISTANCES, dtype=torch.float64), start)


def assert_rows(found: Tensor, expected: list[list[float]]) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def drawn(heads: int, low: float, high: float, seed: int) -> Tensor:
    """A number for each head that is no method's own start."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return low + (high - low) * torch.rand(heads, dtype=torch.float64, generator=generator)


def slopes(heads: int) -> list[float]:
    """ALiBi's by the authors' recursion (arXiv 2108.12409, footnote 8)."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * h / heads) for h in range(1, heads + 1)]
    lower = 2 ** math.floor(math.log2(heads))
    return slopes(lower) + slopes(2 * lower)[0::2][: heads - lower]


@per_heads
def test_alibi_is_minus_the_slope_times_the_distance_in_either_direction(heads):
    assert_rows(biases("alibi", heads), [[-m * abs(D) for D in DISTANCES] for m in slopes(heads)])


@pytest.mark.parametrize(
    ("heads", "exponents"), [(8, range(1, 9)), (16, [h / 2 for h in range(1, 17)])]
)
def test_alibi_at_distance_1_is_minus_the_published_slopes(heads, exponents):
    found = score_bias("alibi", num_heads=heads, query_length=1, key_length=2)
    assert_rows(found[:, 0], [[-(2.0**-x), 0.0] for x in exponents])


@per_heads
def test_trainable_slopes_of_alibi_start_as_the_fixed_ones(heads):
    assert torch.equal(biases("alibi", heads, slopes="trainable"), biases("alibi", heads))


@per_heads
def test_trainable_slopes_of_alibi_are_those_given(heads):
    own = drawn(heads, 0.0, 1.0, 0)
    found = biases("alibi", heads, {"slopes": own}, slopes="trainable")
    assert_rows(found, [[-m * abs(D) for D in DISTANCES] for m in own.tolist()])


def test_random_slopes_of_alibi_are_log_uniform_between_2_to_the_minus_8_and_1():
    found = -score_bias("alibi", num_heads=4096, query_length=1, key_length=2, slopes="random")
    exponents = -found[:, 0, 0].log2()
    assert exponents.min() >= 0
    assert exponents.max() <= 8
    # Uniform over 0…8: an eighth in each bin of 1, with a standard deviation of 21 in 4096.
    assert exponents.histc(8, 0, 8).sub(512).abs().max() < 5 * 21.2


def test_random_slopes_of_alibi_follow_the_seed():
    first, again, other = (
        biases("alibi", 6, slopes="random", seed=seed).flatten() for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("heads", [2, 6, 8, 24])
@pytest.mark.parametrize("kind", ["geometric", "trainable"])
def test_split_directions_give_half_the_heads_the_past_and_half_the_future(heads, kind):
    half = slopes(heads // 2)
    past = [[-m * D if D >= 0 else -math.inf for D in DISTANCES] for m in half]
    future = [[m * D if D <= 0 else -math.inf for D in DISTANCES] for m in half]
    assert_rows(biases("alibi", heads, directions="split", slopes=kind), past + future)


def test_random_slopes_in_split_directions_are_one_for_each_head():
    both = biases("alibi", 4, slopes="random", seed=3)
    split = biases("alibi", 4, slopes="random", seed=3, directions="split")
    assert torch.equal(split[:2, len(FAR) - 1 :], both[:2, len(FAR) - 1 :])
    assert torch.equal(split[2:, : len(FAR)], both[2:, : len(FAR)])


def test_split_directions_change_nothing_in_a_causal_model():
    shape = {"num_heads": 3, "query_length": 4, "key_length": 6}
    assert torch.equal(
        score_bias("alibi", directions="split", **shape), score_bias("alibi", **shape)
    )


@pytest.mark.parametrize("kind", ["geometric", "trainable", "random"])
def test_an_odd_number_of_heads_cannot_be_split(kind):
    method = make_method("alibi", directions="split", slopes=kind)
    with pytest.raises(MethodOptionError, match=r"^num_heads is 3; allowed: an even number") as no:
        method.initial(geometry(3))
    assert "give directions='symmetric'" in str(no.value)


@per_heads
def test_kerple_log_is_minus_r1_log_of_1_plus_r2_times_the_distance(heads):
    r1, r2 = drawn(heads, 0.01, 5.0, 1), drawn(heads, 0.01, 3.0, 2)
    pairs = zip(r1.tolist(), r2.tolist(), strict=True)
    expected = [[-a * math.log(1 + b * abs(D)) for D in DISTANCES] for a, b in pairs]
    assert_rows(biases("kerple_log", heads, {"r1": r1, "r2": r2}), expected)


@per_heads
def test_kerple_power_is_minus_r1_times_the_distance_to_the_r2(heads):
    r1, r2 = drawn(heads, 0.01, 5.0, 1), drawn(heads, 0.01, 2.0, 2)
    pairs = zip(r1.tolist(), r2.tolist(), strict=True)
    expected = [[-a * abs(D) ** b for D in DISTANCES] for a, b in pairs]
    assert_rows(biases("kerple_power", heads, {"r1": r1, "r2": r2}), expected)


@pytest.mark.parametrize("dim", [2, 64, 128])
@per_heads
def test_sandwich_is_the_sum_of_cosines_over_the_heads_ratio(heads, dim):
    sums = [
        sum(math.cos(D / 10000 ** (2 * i / dim)) for i in range(1, dim // 2 + 1)) - dim / 2
        for D in DISTANCES
    ]
    expected = [[total / (8 * h / heads) for total in sums] for h in range(1, heads + 1)]
    assert_rows(biases("sandwich", heads, dim=dim), expected)


def test_sandwich_in_float32_is_float64_rounded():
    # Angles of 100000 tokens in float32 would be off by hundredths.
    method, far = make_method("sandwich"), torch.arange(99_900.0, 100_000.0)
    exact = method.bias(geometry(4), far.double(), {})
    assert torch.equal(method.bias(geometry(4), far, {}), exact.float())


@pytest.mark.parametrize("both", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(("rows", "reach"), [(32, 128), (16, 20), (64, 1000)])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_t5_bias_reads_the_row_of_the_stock_bucket(heads, rows, reach, both):
    weight = drawn(rows * heads, -3.0, 3.0, rows).view(rows, heads)
    distances = torch.arange(-5000, 5001)
    # Stock counts key − query.
    stock = T5Attention._relative_position_bucket(-distances, both, rows, reach)
    method = make_method("t5_bias", num_buckets=rows, max_distance=reach)
    found = method.bias(geometry(heads, both), distances.double(), {"weight": weight})
    assert torch.equal(found, weight[stock].t())


def test_t5_bias_starts_at_no_bias():
    assert torch.equal(biases("t5_bias", 6), torch.zeros(6, len(DISTANCES), dtype=torch.float64))


def naive(
    name: str, heads: int, queries: int, keys: int, both: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cell by cell, one distance at a time; and the parameters it was made of."""
    method, stack = make_method(name), geometry(heads, both)
    start = method.initial(stack)
    if name == "t5_bias":
        start = {"weight": drawn(32 * heads, -1.0, 1.0, 0).view(32, heads)}
    found = torch.empty(heads, queries, keys, dtype=torch.float64)
    for row in range(queries):
        for key in range(keys):
            D = torch.tensor(float(keys - queries + row - key), dtype=torch.float64)
            seen = both or D >= 0
            found[:, row, key] = method.bias(stack, D, start) if seen else -math.inf
    return found, start


@pytest.mark.parametrize("both", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 7), (3, 8)])
@pytest.mark.parametrize("name", BIASES)
def test_score_bias_takes_the_queries_as_the_last_of_the_keys(name, queries, keys, both):
    expected, start = naive(name, 3, queries, keys, both)
    found = score_bias(
        name,
        num_heads=3,
        query_length=queries,
        key_length=keys,
        bidirectional=both,
        parameters=start,
    )
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_score_bias_of_a_method_instance_is_that_of_its_name():
    shape = {"num_heads": 3, "query_length": 4, "key_length": 4}
    method = make_method("kerple_log", seed=5)
    assert torch.equal(score_bias(method, **shape), score_bias("kerple_log", seed=5, **shape))


def test_score_bias_carries_gradients_to_its_parameters():
    rates = {name: torch.full((2,), 0.5, dtype=torch.float64) for name in ("r1", "r2")}
    rates["r1"].requires_grad_()
    found = score_bias("kerple_log", num_heads=2, query_length=1, key_length=3, parameters=rates)
    found.sum().backward()
    # −log(1 + 0.5·D) for D = 2, 1, 0.
    assert rates["r1"].grad.tolist() == pytest.approx([-math.log(2.0) - math.log(1.5)] * 2)


@pytest.mark.parametrize("name", ["yarn", "nope", "xpos", "sinusoidal"])
def test_what_is_no_score_bias_names_those_that_are(name):
    with pytest.raises(UnsupportedMechanismError) as refused:
        score_bias(name, num_heads=2, query_length=2, key_length=2)
    assert str(refused.value) == (
        f"{name!r} adds no bias to scores; methods that do: {', '.join(BIASES)}"
    )


@pytest.mark.parametrize("name", ["linear", "log", "ntk"])
def test_what_scales_a_bias_is_told_from_what_has_none(name):
    with pytest.raises(UnsupportedMechanismError) as refused:
        score_bias(name, num_heads=2, query_length=2, key_length=2)
    assert str(refused.value) == (
        f"{name!r} scales the bias of a checkpoint and brings none of its own; methods that bring "
        f"one: {', '.join(BIASES)}"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"query_length": 0}, "query_length is 0; allowed: a whole number of tokens, at least 1"),
        ({"query_length": 5}, "key_length is 4; allowed: a whole number of tokens, at least 5"),
        ({"num_heads": 0}, "num_heads is 0; allowed: a whole number of heads, at least 1"),
        (
            {"parameters": {}},
            "parameters are of shapes {}; allowed for 'kerple_log': {'r1': (2,), ",
        ),
        (
            {"parameters": {"r1": torch.ones(2), "r2": torch.ones(3)}},
            "parameters are of shapes {'r1': (2,), 'r2': (3,)}; allowed",
        ),
    ],
    ids=["no queries", "too many queries", "no heads", "missing", "wrong shape"],
)
def test_score_bias_refuses_what_does_not_fit(wrong, message):
    usual = {"num_heads": 2, "query_length": 4, "key_length": 4}
    with pytest.raises(MethodOptionError) as refused:
        score_bias("kerple_log", **{**usual, **wrong})
    assert str(refused.value).startswith(message)
