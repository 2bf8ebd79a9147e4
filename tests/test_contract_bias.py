"""Models with score biases: patched logits against stock transformers, for every mask."""

import pytest
import torch
from covering import each_pair, pairs
from hand_scaled import hand_scaled
from tiny_bias_models import (
    ALIBI_KINDS,
    KINDS,
    ONE_EACH,
    RELATIVE_KINDS,
    TRAINED_LENGTH,
    answers,
    assert_near,
    bias_model,
    fresh_bias_model,
    inputs,
    padded,
    real,
)
from tiny_models import token_ids

from ropepatch import patch_info, patch_model, patched, verify

LENGTH = 48  # beyond the trained length, 32
METHODS = [(kind, method) for kind in ALIBI_KINDS for method in ("linear", "ntk", "dynamic_linear")]
METHODS += [(kind, method) for kind in RELATIVE_KINDS for method in ("linear", "log")]
SOME_KERNELS = ["auto", "toeplitz", "eager"]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_METHOD = pytest.mark.parametrize(("kind", "method"), METHODS)
PADDINGS = ["none", "left", "right"]
KERNELS = pairs(
    {"kind": ALIBI_KINDS, "kernel": [*SOME_KERNELS, "folded"], "padding": PADDINGS}
) + pairs({"kind": RELATIVE_KINDS, "kernel": SOME_KERNELS, "padding": PADDINGS})
EVERY_PADDING = pytest.mark.parametrize("padding", PADDINGS)


def stock(kind, attention=None):
    """A stock model that knows its bias once, and as far as these tests go."""
    model = fresh_bias_model(kind, attention=attention)
    if kind.startswith("falcon"):
        model.config._attn_implementation = "sdpa"  # its eager code adds the bias twice
    if kind == "mpt":
        model.config.max_seq_len = 256
    return model


@pytest.mark.parametrize(("kind", "kernel", "padding"), KERNELS)
def test_factor_one_equals_stock(kind, kernel, padding):
    # Eager and unscaled is stock's own code, with MPT's limit.
    stocks_limit = (kind, kernel) == ("mpt", "eager")
    ids, mask = padded(TRAINED_LENGTH if stocks_limit else LENGTH, padding)
    reference = answers(stock(kind), ids, mask)
    model = patch_model(fresh_bias_model(kind), "linear", 1, attention=kernel)
    assert_near(real(answers(model, ids, mask), mask), real(reference, mask))


@each_pair(kind=RELATIVE_KINDS, attention=["eager", "sdpa"], padding=PADDINGS)
def test_t5_at_factor_one_equals_each_of_stocks_implementations(kind, attention, padding):
    ids, mask = padded(LENGTH, padding)
    reference = answers(stock(kind, attention), ids, mask)
    model = patch_model(fresh_bias_model(kind, attention=attention), "linear", 1)
    assert_near(real(answers(model, ids, mask), mask), real(reference, mask))


@pytest.mark.parametrize("kind", ["bloom", "mpt", *RELATIVE_KINDS])
@EVERY_PADDING
def test_factor_one_in_eager_attention_is_bit_identical_to_unpatched(kind, padding):
    ids, mask = padded(TRAINED_LENGTH, padding)
    model = fresh_bias_model(kind)
    before = answers(model, ids, mask)
    with patched(model, "linear", 1, attention="eager"):
        assert torch.equal(answers(model, ids, mask), before)


@EVERY_METHOD
@EVERY_PADDING
def test_scaled_logits_equal_stock_code_with_a_bias_scaled_by_hand(
    kind, method, padding, monkeypatch
):
    if kind == "mpt" and method == "dynamic_linear" and padding != "none":
        pytest.skip("stock MPT has one bias for all rows")
    ids, mask = padded(LENGTH, padding)
    reference = hand_scaled(kind, method, LENGTH, monkeypatch)
    explicit = torch.ones_like(ids) if mask is None else mask
    expected = real(answers(reference, ids, explicit), mask)
    model = patch_model(fresh_bias_model(kind), method, 4)
    assert_near(real(answers(model, ids, mask), mask), expected)


@EVERY_METHOD
def test_scaling_changes_the_logits(kind, method):
    ids = token_ids(1, LENGTH)
    scaled = answers(patch_model(fresh_bias_model(kind), method, 4), ids)
    unscaled = answers(patch_model(fresh_bias_model(kind), "linear", 1), ids)
    assert (scaled - unscaled).abs().max() > 1e-3


@EVERY_METHOD
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_padded_row_equals_itself_alone(kind, method, padding):
    ids, mask = padded(LENGTH, padding)
    model = patch_model(fresh_bias_model(kind), method, 4)
    kept = mask[1].bool()
    assert_near(answers(model, ids, mask)[1, kept], answers(model, ids[1:, kept])[0])


def test_mpt_runs_beyond_its_max_seq_len_when_patched():
    ids = token_ids(1, 100)
    with pytest.raises(RuntimeError):
        answers(fresh_bias_model("mpt"), ids)
    model = patch_model(fresh_bias_model("mpt"), "linear", 4)
    assert model.config.max_seq_len == 128
    assert answers(model, ids).isfinite().all()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("method", ["linear", "log"])
def test_one_part_of_a_t5_is_scaled_and_the_other_is_not(part, method, monkeypatch):
    ids = token_ids(2, LENGTH)
    reference = hand_scaled("t5", method, LENGTH, monkeypatch)
    other = reference.decoder if part == "encoder" else reference.encoder
    del other.block[0].layer[0].SelfAttention.compute_bias
    model = patch_model(fresh_bias_model("t5"), method, 4, part=part)
    assert_near(answers(model, ids), answers(reference, ids))
    assert patch_info(model).part == part
    assert verify(model).method == method


@pytest.mark.parametrize("kind", ["bloom", "mpt", "t5", "umt5"])
@pytest.mark.parametrize("shape", ["packed", "prefix"])
def test_a_mask_of_four_dimensions_gives_what_stock_gives(kind, shape):
    """Two packed documents without a view of each other; a prefix that sees itself both ways."""
    ids = token_ids(2, LENGTH)
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    first = torch.arange(LENGTH) < 20
    packed = past & (first[:, None] == first)
    seen = packed if shape == "packed" else past | (first[:, None] & first)
    mask = seen.expand(2, 1, LENGTH, LENGTH)
    reference = stock(kind)
    arguments = inputs(reference, ids) | {"use_cache": False}
    arguments["decoder_attention_mask" if kind in RELATIVE_KINDS else "attention_mask"] = mask
    if kind in ("bloom", "mpt"):  # stock takes what it adds, and in MPT what it hides
        shaped = ~mask if kind == "mpt" else (~mask).float() * torch.finfo(torch.float32).min
    else:
        shaped = mask
    with torch.no_grad():
        model = patch_model(fresh_bias_model(kind), "linear", 1)
        ours = model(**arguments).logits
    assert_near(ours, reference_with_mask(kind, reference, arguments, shaped, mask))


def reference_with_mask(kind, reference, arguments, shaped, mask):
    """Stock logits; BLOOM and MPT make their bias of a mask of two dimensions, so theirs is put in."""
    if kind in RELATIVE_KINDS:
        with torch.no_grad():
            return reference(**arguments).logits
    for block in getattr(reference.transformer, "h" if kind == "bloom" else "blocks"):
        block.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"attention_mask": shaped}),
            with_kwargs=True,
        )
    return answers(reference, arguments["input_ids"])


@pytest.mark.parametrize("kind", ["bloom", "mpt", *RELATIVE_KINDS])
@EVERY_PADDING
def test_output_attentions_are_those_of_stock_at_factor_one(kind, padding):
    ids, mask = padded(TRAINED_LENGTH, padding)
    reference = fresh_bias_model(kind, attention="eager" if kind in RELATIVE_KINDS else None)
    model = patch_model(fresh_bias_model(kind), "linear", 1)
    with torch.no_grad():
        ours = model(**inputs(model, ids, mask), output_attentions=True)
        stocks = reference(**inputs(model, ids, mask), output_attentions=True)
    names = [name for name in stocks if name.endswith("attentions")]
    assert [name for name in ours if name.endswith("attentions")] == names
    for layer, expected in ((a, b) for n in names for a, b in zip(ours[n], stocks[n], strict=True)):
        assert_near(real(layer.mT.transpose(1, 3), mask), real(expected.mT.transpose(1, 3), mask))


@pytest.mark.parametrize("kind", ONE_EACH)
def test_output_attentions_sum_to_one_and_leave_the_logits_alone(kind):
    ids, mask = padded(LENGTH, "right")
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    with torch.no_grad():
        out = model(**inputs(model, ids, mask), output_attentions=True)
    layers = out.decoder_attentions if kind in RELATIVE_KINDS else out.attentions
    assert layers[0].shape == (2, model.config.num_attention_heads, LENGTH, LENGTH)
    torch.testing.assert_close(layers[0].sum(-1), torch.ones_like(layers[0][..., 0]))
    assert_near(real(out.logits, mask), real(answers(model, ids, mask), mask))


def test_a_t5_encoder_alone_is_patched(monkeypatch):
    ids, mask = padded(LENGTH, "right")
    whole = fresh_bias_model("t5")
    model = bias_model("t5", head="EncoderModel")
    model.load_state_dict(whole.state_dict(), strict=False)
    reference = hand_scaled("t5", "log", LENGTH, monkeypatch).get_encoder()
    expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    ours = answers(patch_model(model, "log", 4), ids, mask)
    assert_near(real(ours, mask), real(expected, mask))
