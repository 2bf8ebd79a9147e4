"""What holds for biases whatever their parameters: monotone, finite, differentiable, reproducible."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ropepatch import score_bias
from ropepatch.methods import make_method
from ropepatch.methods.replacement import HeadGeometry, ScoreBiasMethod

OPTIONS = {
    "alibi": {},
    "alibi, trainable": {"slopes": "trainable"},
    "alibi, random": {"slopes": "random"},
    "alibi, split": {"directions": "split", "slopes": "trainable"},
    "kerple_log": {},
    "kerple_power": {},
    "sandwich": {},
    "t5_bias": {},
}
TRAINED = ("alibi, trainable", "alibi, split", "kerple_log", "kerple_power", "t5_bias")
ROUND_ZERO = torch.arange(-40.0, 41.0, dtype=torch.float64)

variants = pytest.mark.parametrize("variant", OPTIONS)
trained = pytest.mark.parametrize("variant", TRAINED)


def made(variant: str, **options) -> ScoreBiasMethod:
    return make_method(variant.split(",")[0], **OPTIONS[variant], **options)


def geometry(heads: int = 4, bidirectional: bool = True) -> HeadGeometry:
    return HeadGeometry(
        num_heads=heads, bidirectional=bidirectional, original_max_position_embeddings=256
    )


def within_limits(method: ScoreBiasMethod, seed: int) -> dict[str, Tensor]:
    """Parameters from all over what the limits allow, up to 4."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, start in method.initial(geometry()).items():
        low, high = method.limits.get(name, (0.0, 4.0))
        share = torch.rand(start.shape, dtype=torch.float64, generator=generator)
        found[name] = low + (min(high, 4.0) - low) * share
    return found


@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize(
    "variant", ["alibi", "alibi, trainable", "alibi, random", "kerple_log", "kerple_power"]
)
def test_a_bias_never_grows_with_the_distance(variant, seed):
    method = made(variant)
    parameters = within_limits(method, seed)
    distances = torch.tensor([*range(300), 1000, 10_000, 100_000], dtype=torch.float64)
    past, future = (method.bias(geometry(), D, parameters) for D in (distances, -distances))
    assert (past.diff() <= 0).all()
    assert torch.equal(future, past)
    assert (past[:, 0] == 0).all()


def test_sandwich_falls_by_powers_of_ten_and_at_first_though_not_everywhere():
    # Its fastest pairs turn within 7 tokens, so it wavers on the way down.
    method = make_method("sandwich")
    near = method.bias(geometry(), torch.arange(12.0, dtype=torch.float64), {})
    far = method.bias(geometry(), 10.0 ** torch.arange(5, dtype=torch.float64), {})
    assert (near.diff() < 0).all()
    assert (far.diff() < 0).all()


def test_sandwich_is_steepest_in_the_first_head():
    found = make_method("sandwich").bias(geometry(), torch.tensor([5.0, 500.0]).double(), {})
    assert (found.diff(dim=0) > 0).all()


@given(
    queries=st.integers(1, 12),
    more=st.integers(0, 12),
    heads=st.sampled_from([2, 4, 6]),
    both=st.booleans(),
)
@variants
def test_a_bias_depends_on_the_distance_only(variant, queries, more, heads, both):
    keys = queries + more
    found = score_bias(
        made(variant), num_heads=heads, query_length=queries, key_length=keys, bidirectional=both
    )
    for row in range(1, queries):
        assert torch.equal(found[:, row, 1:], found[:, row - 1, :-1])


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_has_the_shape_and_the_dtype_of_the_distances(variant, dtype):
    method = made(variant)
    start = {name: value.to(torch.bfloat16) for name, value in method.initial(geometry()).items()}
    for shape in ((), (5,), (3, 5), (2, 1, 5)):
        found = method.bias(geometry(), torch.ones(shape, dtype=dtype), start)
        assert found.shape == (4, *shape)
        assert found.dtype == dtype


@variants
def test_a_bias_of_hidden_distances_is_finite_in_a_causal_model(variant):
    method, stack = made(variant), geometry(bidirectional=False)
    future = -torch.tensor([1.0, 100.0, 100_000.0, 1e7])
    found = method.bias(stack, future, method.initial(stack))
    assert found.isfinite().all()


@trained
def test_gradients_are_those_of_finite_differences(variant):
    method = made(variant)
    parameters = within_limits(method, 7)
    names = sorted(parameters)
    # The future of half of the heads is −inf, from which no difference can be taken.
    seen = method.bias(geometry(), ROUND_ZERO, parameters).isfinite()

    def bias(*values: Tensor) -> Tensor:
        made = method.bias(geometry(), ROUND_ZERO, dict(zip(names, values, strict=True)))
        return made[seen]

    leaves = [parameters[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(bias, leaves)


@trained
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_distance_0_in_both_directions_and_far_off(variant, dtype):
    method = made(variant)
    distances = torch.tensor([-100_000, -1, 0, 1, 100_000], dtype=dtype)
    leaves = {
        name: value.to(dtype).requires_grad_() for name, value in method.initial(geometry()).items()
    }
    bias = method.bias(geometry(), distances, leaves)
    (bias.softmax(-1) * torch.arange(5)).sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


@trained
@pytest.mark.parametrize("heads", [2, 6, 8])
def test_parameters_start_within_their_limits_one_for_each_head_the_same_every_time(variant, heads):
    method = made(variant)
    first, again = (method.initial(geometry(heads)) for _ in range(2))
    for name, value in first.items():
        low, high = method.limits.get(name, (-math.inf, math.inf))
        assert torch.equal(value, again[name])
        assert value.shape[-1] == heads
        assert value.dtype == torch.float64
        assert ((value >= low) & (value <= high)).all()


@pytest.mark.parametrize("variant", ["alibi", "alibi, random", "sandwich"])
def test_what_is_fixed_trains_nothing(variant):
    assert made(variant).initial(geometry()) == {}


def test_drawing_a_start_leaves_the_users_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_method("kerple_log").initial(geometry())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["kerple_log", "kerple_power"])
def test_another_seed_starts_kerple_elsewhere(name):
    first, other = (make_method(name, seed=seed).initial(geometry()) for seed in (0, 1))
    assert not any(torch.equal(first[key], other[key]) for key in ("r1", "r2"))


@pytest.mark.parametrize(("name", "most"), [("kerple_log", (2, 1)), ("kerple_power", (1, 2))])
def test_kerple_starts_uniform_up_to_what_the_authors_code_draws(name, most):
    start = make_method(name).initial(geometry(4096))
    for key, high in zip(("r1", "r2"), most, strict=True):
        # The mean of 4096 uniform numbers has a standard deviation of high/√12/64.
        assert float(start[key].mean()) == pytest.approx(
            high / 2, abs=5 * high / math.sqrt(12) / 64
        )
        assert 0.99 * high < float(start[key].max()) < high
        assert float(start[key].min()) == 0.01


def test_the_limits_are_those_of_the_authors_code():
    log, power = (make_method(name).limits for name in ("kerple_log", "kerple_power"))
    assert log == {"r1": (0.01, math.inf), "r2": (0.01, math.inf)}
    assert power == {"r1": (0.01, math.inf), "r2": (0.01, 2.0)}


@variants
def test_the_factor_moves_no_bias(variant):
    method = made(variant)
    start = method.initial(geometry())
    longer = dataclasses.replace(method, factor=8.0)
    assert torch.equal(
        longer.bias(geometry(), ROUND_ZERO, start), method.bias(geometry(), ROUND_ZERO, start)
    )
