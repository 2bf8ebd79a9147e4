"""Every way of computing attention with a score bias against its definition in float64."""

import pytest
import torch
from covering import each_pair
from dense_attention import bias_of, dense, make_case, ours, with_something_to_see
from hand_scaled import press_slopes
from tiny_bias_models import assert_near
from torch.nn.attention.flex_attention import flex_attention

from ropepatch.attention import flex
from ropepatch.attention.biased import biased_attention
from ropepatch.methods import make_method

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
WAYS = [("alibi", way, True) for way in ("auto", "toeplitz", "folded", "eager", "blocks")]
WAYS += [
    ("table", way, causal)
    for way in ("auto", "toeplitz", "eager", "blocks")
    for causal in (True, False)
]
EVERY_WAY = pytest.mark.parametrize(("bias", "way", "causal"), WAYS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture
def uncompiled_flex(monkeypatch):
    """FlexAttention as Python runs it: the same function, without half a minute of compiling."""
    monkeypatch.setattr(flex, "_compiled", lambda on_cpu: flex_attention)


def assert_right(case, way, dtype, slopes=None):
    case = case.cast(dtype)
    got = ours(case, way)
    assert got.dtype == dtype
    assert got.isfinite().all()
    expected = dense(case, slopes)
    got, expected = (with_something_to_see(case, each) for each in (got, expected))
    assert_near(got, expected, TOLERANCE[dtype])


@each_pair(kernel=WAYS, dtype=list(TOLERANCE), length=[7, 257], padding=[False, True])
def test_every_precision_equals_the_definition(kernel, dtype, length, padding):
    bias, way, causal = kernel
    assert_right(make_case(bias, length, causal=causal, padding=padding, heads=2), way, dtype)


@each_pair(kernel=WAYS, length=[1, 255, 256, 530], padding=[False, True])
def test_every_length_equals_the_definition(kernel, length, padding):
    """Around the 256 queries by which the kernels are split, and several of them with a rest."""
    bias, way, causal = kernel
    case = make_case(bias, length, causal=causal, padding=padding, heads=3)
    assert_right(case, way, torch.float32)


@each_pair(
    kernel=[each for each in WAYS if each[2]],
    dtype=list(TOLERANCE),
    lengths=[(1, 300), (64, 200), (257, 9)],
    padding=[False, True],
)
def test_queries_after_cached_keys_equal_the_definition(kernel, dtype, lengths, padding):
    (bias, way, _), (queries, past) = kernel, lengths
    assert_right(make_case(bias, queries, past=past, padding=padding, heads=2), way, dtype)


@each_pair(kernel=WAYS, heads=[1, 6, 8], one_key_head=[False, True])
def test_every_number_of_heads_equals_the_definition(kernel, heads, one_key_head):
    bias, way, causal = kernel
    key_heads = 1 if one_key_head else heads
    case = make_case(bias, 70, heads=heads, key_heads=key_heads, causal=causal, padding=True)
    assert_right(case, way, torch.float32)


@each_pair(
    kernel=[("alibi", True), ("table", True), ("table", False)],
    dtype=list(TOLERANCE),
    padding=[False, True],
)
@pytest.mark.usefixtures("uncompiled_flex")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_the_definition(kernel, dtype, padding):
    bias, causal = kernel
    assert_right(make_case(bias, 130, causal=causal, padding=padding), "flex", dtype)
    if causal:
        assert_right(make_case(bias, 20, past=110, padding=padding), "flex", dtype)


def test_compiled_flex_equals_the_definition():
    """Once, for what only the compiler sees; it takes seconds."""
    with torch.no_grad():
        assert_right(make_case("table", 70, causal=True, padding=True), "flex", torch.float32)


@each_pair(
    way=["auto", "toeplitz", "folded", "eager", "blocks"],
    dtype=list(TOLERANCE),
    lengths=[(260, 0), (20, 100), (1, 200)],
)
def test_every_row_gets_the_slopes_of_its_own_length(way, dtype, lengths):
    queries, past = lengths
    method = make_method("dynamic_linear", factor=64)
    case = make_case("alibi", queries, past=past, padding=True, method=method)
    lengths = case.mask.sum(-1, keepdim=True).clamp(min=32)
    assert_right(case, way, dtype, press_slopes(6) * 32 / lengths)


@pytest.mark.parametrize("way", ["auto", "toeplitz", "folded", "eager", "blocks"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 40])
def test_distances_of_thousands_of_tokens_are_not_rounded(way, dtype, queries):
    """In bfloat16 the bias itself would be off by 8 at 5000 tokens; a slope, too, has to be exact."""
    assert_right(make_case("alibi", queries, past=5000), way, dtype)


@pytest.mark.parametrize("way", ["auto", "toeplitz", "folded", "eager", "blocks"])
@pytest.mark.parametrize("padding", [False, True])
def test_autocast_leaves_the_bias_in_float32(way, padding):
    case = make_case("alibi", 20, past=2000, padding=padding)
    expected = ours(case, way)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(case, way), expected)


@each_pair(way=["auto", "eager", "blocks"], dtype=list(TOLERANCE), padding=[False, True])
def test_attention_without_a_bias_equals_the_definition(way, dtype, padding):
    """Cross-attention: more keys than queries, all in view."""
    case = make_case("none", 50, past=30, causal=False, padding=padding)
    assert_right(case, way, dtype)


@pytest.mark.parametrize("bias", ["alibi", "table"])
def test_a_mask_of_queries_and_keys_says_all(bias):
    case = make_case(bias, 40)
    seen = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    seen |= torch.eye(40, dtype=torch.bool)
    case.mask = None
    arguments = {"offset": 0, "scale": 0.2, "dropout": 0.0, "kernel": "auto"}
    got, _ = biased_attention(
        case.query, case.key, case.value, bias_of(case), mask=seen, causal=True, **arguments
    )
    case.seen = lambda: seen
    assert_near(got, dense(case), 3e-6)


@EVERY_WAY
@EVERY_DTYPE
def test_a_row_of_nothing_but_padding_gives_finite_numbers_and_gradients(bias, way, causal, dtype):
    case = make_case(bias, 70, causal=causal, padding=True).cast(dtype)
    case.mask[0] = False
    for each in (case.query, case.key, case.value):
        each.requires_grad_()
    got = ours(case, way)
    got.float().sum().backward()
    assert got.isfinite().all()
    assert all(each.grad.isfinite().all() for each in (case.query, case.key, case.value))


@pytest.mark.parametrize("bias", ["alibi", "table"])
def test_probabilities_are_given_where_the_whole_matrix_is_asked_for(bias):
    case = make_case(bias, 40)
    arguments = {"mask": None, "offset": 0, "scale": 0.2, "dropout": 0.0, "causal": True}
    out, probabilities = biased_attention(
        case.query, case.key, case.value, bias_of(case), kernel="eager", **arguments
    )
    assert probabilities.shape == (1, 6, 40, 40)
    torch.testing.assert_close((probabilities @ case.value).transpose(1, 2), out)
    assert (probabilities.triu(1) == 0).all()
