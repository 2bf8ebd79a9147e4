"""Attention with a score bias in training: gradients, dropout, and memory linear in the length."""

import pytest
import torch
from covering import each_pair
from dense_attention import dense, make_case, ours, with_something_to_see
from hand_scaled import scaled_buckets
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ropepatch.methods import make_method

WAYS = [("alibi", way, True) for way in ("toeplitz", "folded", "eager", "blocks")]
WAYS += [("table", w, causal) for w in ("toeplitz", "eager", "blocks") for causal in (True, False)]
EVERY_WAY = pytest.mark.parametrize(("bias", "way", "causal"), WAYS)
EVERY_BIAS = pytest.mark.parametrize(
    ("bias", "causal"), [("alibi", True), ("table", True), ("table", False)]
)


def gradients(case, answer, weights):
    """Of the weighted sum of all answers that mean something: for query, key, value and the table."""
    parts = [case.query, case.key, case.value]
    table = case.owner.relative_attention_bias.weight
    parts = [each.detach().requires_grad_() for each in parts]
    case.query, case.key, case.value = parts
    out = with_something_to_see(case, answer(case))
    parts += [table] if table.requires_grad else []
    return torch.autograd.grad((out * weights.to(out.dtype)).sum(), parts)


def assert_right_gradients(case, way, tolerance, trains_table=False):
    case.owner.requires_grad_(trains_table)
    out = with_something_to_see(case, dense(case))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    expected = gradients(case.cast(torch.float64), dense, weights)
    got = gradients(case, lambda case: ours(case, way), weights)
    for each, reference in zip(got, expected, strict=True):
        # A query with one key has no gradient at all: its own size is then no measure.
        scale = max(float(reference.abs().max()), 0.1)
        assert (each.double() - reference.double()).abs().max() <= tolerance * scale


@each_pair(kernel=WAYS, length=[1, 40, 300], padding=[False, True])
def test_gradients_equal_those_of_the_definition(kernel, length, padding):
    bias, way, causal = kernel
    case = make_case(bias, length, causal=causal, padding=padding, heads=3, channels=8)
    assert_right_gradients(case, way, 1e-5)


@EVERY_WAY
def test_gradients_of_shared_keys_and_of_cached_keys_equal_those_of_the_definition(
    bias, way, causal
):
    case = make_case(bias, 70, past=30 * causal, heads=3, key_heads=1, causal=causal, padding=True)
    assert_right_gradients(case, way, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY_WAY
def test_gradients_in_low_precision_are_rounded_and_not_wrong(bias, way, causal, dtype):
    case = make_case(bias, 270, causal=causal, padding=True, heads=2).cast(dtype)
    assert_right_gradients(case, way, 2e-2)


@each_pair(
    way=["auto", "toeplitz", "eager", "blocks"],
    causal=[True, False],
    length=[1, 40, 300],
    padding=[False, True],
)
def test_the_gradient_of_a_table_equals_that_of_the_definition(way, causal, length, padding):
    case = make_case("table", length, causal=causal, padding=padding, heads=3, channels=8)
    assert_right_gradients(case, way, 1e-5, trains_table=True)


@pytest.mark.parametrize("method", ["linear", "log"])
def test_a_scaled_table_is_trained_in_the_buckets_that_are_read(method):
    case = make_case("table", 100, causal=False, method=make_method(method, factor=4))
    case.owner.requires_grad_(True)
    out = ours(case, "auto")
    weight = case.owner.relative_attention_bias.weight
    (gradient,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), weight)
    distances = case.distances()
    read = torch.zeros(32, dtype=torch.bool)
    read[scaled_buckets(method, -distances, decoder=False).unique()] = True
    assert torch.equal(gradient.abs().sum(-1) > 0, read)


@EVERY_BIAS
@pytest.mark.parametrize("way", ["auto", "eager"])
def test_dropout_leaves_the_mean_as_it_is(bias, causal, way):
    """512 draws at once; every number within five standard errors of the definition."""
    torch.manual_seed(0)
    case = make_case(bias, 30, causal=causal, heads=2, channels=8)
    expected = dense(case)
    for name in ("query", "key", "value"):
        setattr(case, name, getattr(case, name).expand(512, -1, -1, -1))
    draws = ours(case, way, dropout=0.3).double()
    error = draws.std(0) / 512**0.5
    assert (error[1:] > 0).all()
    assert ((draws.mean(0) - expected[0]).abs() <= 5 * error + 1e-6).all()


@EVERY_BIAS
def test_the_backward_pass_drops_what_the_forward_pass_dropped(bias, causal):
    """The answer is linear in the values, so it is the product of them and its own gradient."""
    torch.manual_seed(0)
    case = make_case(bias, 300, causal=causal, heads=2, channels=8)
    case.query.requires_grad_()
    case.value.requires_grad_()
    out = ours(case, "auto", dropout=0.5)
    weights = torch.randn_like(out)
    of_value, of_query = torch.autograd.grad((out * weights).sum(), (case.value, case.query))
    torch.testing.assert_close((of_value * case.value).sum(), (out * weights).sum())
    assert of_query.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest memory behind a tensor that any operation gives, views counting as their base."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return out


FAST = [("alibi", way, True) for way in ("auto", "toeplitz", "folded")]
FAST += [("table", way, causal) for way in ("auto", "toeplitz") for causal in (True, False)]


@pytest.mark.parametrize(("bias", "way", "causal"), FAST)
@pytest.mark.parametrize("extra", ["nothing", "padding", "dropout", "a table that is trained"])
def test_memory_is_linear_in_the_length_forward_and_backward(bias, way, causal, extra):
    """No tensor is larger than 300 numbers per token and head; a matrix has 1024."""
    length, heads = 1024, 1
    case = make_case(bias, length, heads=heads, causal=causal)
    if extra == "padding":
        case.mask = torch.ones(1, length, dtype=torch.bool)
        case.mask[:, :100] = False
    case.owner.requires_grad_(extra == "a table that is trained")
    for each in (case.query, case.key, case.value):
        each.requires_grad_()
    with LargestTensor() as largest:
        ours(case, way, dropout=0.1 if extra == "dropout" else 0.0).sum().backward()
    assert largest.bytes <= 4 * length * heads * 300
