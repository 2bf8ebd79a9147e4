"""Patched models with score biases in training: checkpointing, dropout, adapters and tables."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_bias_models import (
    KINDS,
    ONE_EACH,
    RELATIVE_KINDS,
    answers,
    assert_near,
    bias_model,
    fresh_bias_model,
    inputs,
    padded,
    real,
)
from tiny_models import token_ids

from ropepatch import patch_model, patched

pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated")
LENGTH = 30
DROPOUT = {
    "bloom": {"attention_dropout": 0.2, "hidden_dropout": 0.1},
    "mpt": {},  # its config takes whole numbers only, so it is set below
    "falcon": {"attention_dropout": 0.2, "hidden_dropout": 0.1},
    "t5": {"dropout_rate": 0.2},
    "umt5": {"dropout_rate": 0.2},
}


def dropping(kind):
    """A patched model with dropout."""
    model = bias_model(kind, **DROPOUT[kind])
    for module in model.modules():
        if hasattr(module, "attn_dropout_p"):
            module.attn_dropout_p = 0.2
    return patch_model(model, "linear", 4)


def gradients(model, padding="right"):
    """Of a language model's loss, by parameter."""
    ids, mask = padded(LENGTH, padding)
    model.zero_grad()
    labels = ids.clone() if mask is None else ids.masked_fill(mask == 0, -100)
    labels[:, 1:][labels[:, :-1] == -100] = -100  # not the first token after padding, either
    arguments = inputs(model, ids, mask)
    model(**arguments, labels=labels, use_cache=False).loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def assert_same_gradients(got, expected, tolerance):
    assert got.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        assert (got[name] - each).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_gradients_at_factor_one_equal_those_of_stock(kind, padding, kernel):
    model = fresh_bias_model(kind)
    if kind.startswith("falcon"):
        model.config._attn_implementation = "sdpa"  # its eager code adds the bias twice
    expected = gradients(model, padding)
    assert_same_gradients(
        gradients(patch_model(model, "linear", 1, attention=kernel), padding), expected, 1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(kind, use_reentrant):
    model = patch_model(fresh_bias_model(kind), "linear", 4).train()
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    assert_same_gradients(gradients(model), expected, 1e-5)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_gradient_checkpointing_repeats_its_dropout(kind):
    model = dropping(kind).train()
    torch.manual_seed(0)
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(0)
    assert_same_gradients(gradients(model), expected, 1e-5)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_dropout_acts_in_training_only_and_gives_finite_gradients(kind):
    ids = token_ids(2, LENGTH)
    plain = answers(patch_model(bias_model(kind), "linear", 4), ids)
    model = dropping(kind)
    assert torch.equal(answers(model, ids), plain)
    model.train()
    first, second = answers(model, ids), answers(model, ids)
    assert first.isfinite().all()
    assert not torch.equal(first, second)
    assert all(each.isfinite().all() for each in gradients(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_mode_give_the_same_logits_without_dropout(kind):
    ids, mask = padded(LENGTH, "right")
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    expected = real(answers(model, ids, mask), mask)
    assert_near(real(answers(model.train(), ids, mask), mask), expected)


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_a_table_may_be_frozen(kind):
    model = fresh_bias_model(kind)
    expected = gradients(patch_model(model, "linear", 4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("relative_attention_bias" not in name)
    got = gradients(model)
    assert not any("relative_attention_bias" in name for name in got)
    assert_same_gradients(got, {name: expected[name] for name in got}, 1e-5)


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
@pytest.mark.parametrize("first", ["patch", "adapter"])
def test_tables_that_an_adapter_trains_get_their_gradient(kind, first):
    config = LoraConfig(
        r=2, target_modules=["q"], modules_to_save=["relative_attention_bias"], lora_dropout=0.0
    )
    model = fresh_bias_model(kind)
    expected = gradients(patch_model(model, "linear", 4))
    if first == "adapter":
        model = patch_model(get_peft_model(fresh_bias_model(kind), config), "linear", 4)
    else:
        model = get_peft_model(patch_model(fresh_bias_model(kind), "linear", 4), config)
    trained = {n: g for n, g in adapted_gradients(model).items() if "relative" in n}
    tables = {n: g for n, g in expected.items() if "relative" in n}
    assert len(trained) == len(tables) > 0
    for (name, got), reference in zip(trained.items(), tables.values(), strict=True):
        torch.testing.assert_close(got, reference, atol=1e-5, rtol=1e-4, msg=name)


def adapted_gradients(model):
    """`gradients` through PEFT, which hides what the model inside is."""
    inner = model.get_base_model()
    gradients(inner)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ONE_EACH)
def test_a_step_of_training_moves_the_patched_model_as_it_would_stock(kind):
    """One step at factor 1, then both without the patch."""
    stock, model = fresh_bias_model(kind), fresh_bias_model(kind)
    if kind == "falcon":
        stock.config._attn_implementation = model.config._attn_implementation = "sdpa"
    gradients(stock)
    torch.optim.SGD(stock.parameters(), lr=0.1).step()
    with patched(model, "linear", 1):
        gradients(model)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    ids = token_ids(2, LENGTH)
    assert_near(answers(model, ids), answers(stock, ids))
