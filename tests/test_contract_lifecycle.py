"""What a patch leaves alone, survives, and takes back, over every architecture."""

import copy
import pickle

import pytest
import torch
from covering import each_pair, each_value
from tiny_models import KINDS, fresh_model, logits, token_ids

from ropepatch import patch_info, patch_model, patched, unpatch_model, verify
from ropepatch.errors import AlreadyPatchedError, MethodOptionError, NotPatchedError
from ropepatch.surgery import AttributeChange

IDS = token_ids(2, 40)
METHODS = ["yarn", "dynamic_yarn"]
COPIED = ["deepcopy", "pickle"]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def snapshot(model):
    """Everything about a model that a patch might change and must put back."""
    return (
        logits(model, IDS),
        {name: id(module) for name, module in model.named_modules()},
        {name: dict(module._forward_pre_hooks) for name, module in model.named_modules()},
        set(vars(model)),
        model.config.to_dict(),
        model.generation_config.to_dict(),
    )


def assert_same(model, before):
    after = snapshot(model)
    assert torch.equal(after[0], before[0])
    assert after[1:] == before[1:]


@EVERY_KIND
def test_state_dict_does_not_change(kind):
    model = fresh_model(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = patch_model(model, "yarn", 4).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@EVERY_KIND
def test_patch_model_returns_the_same_object(kind):
    model = fresh_model(kind)
    assert patch_model(model, "yarn", 4) is model


@each_pair(kind=KINDS, method=METHODS)
def test_unpatching_restores_everything(kind, method):
    model = fresh_model(kind)
    before = snapshot(model)
    unpatch_model(patch_model(model, method, 4))
    assert_same(model, before)
    assert patch_info(model) is None


@each_value(kind=KINDS, method=METHODS)
def test_unpatching_after_generate_restores_everything(kind, method):
    model = fresh_model(kind)
    before = snapshot(model)
    patch_model(model, method, 4)
    model.generate(IDS, max_new_tokens=3, do_sample=False)
    unpatch_model(model)
    assert_same(model, before)


@EVERY_KIND
def test_context_manager_restores_when_the_body_raises(kind):
    model = fresh_model(kind)
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), patched(model, "yarn", 4):
        raise ZeroDivisionError
    assert_same(model, before)


def copied(model, how):
    return copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))


@each_value(kind=KINDS, method=METHODS, how=COPIED, shift=1)
def test_copies_are_patched_alike(kind, method, how):
    model = patch_model(fresh_model(kind), method, 4)
    copy_ = copied(model, how)
    assert torch.equal(logits(copy_, IDS), logits(model, IDS))
    assert verify(copy_) == verify(model)


@each_value(kind=KINDS, method=METHODS, how=COPIED)
def test_undoing_a_copy_restores_it_and_leaves_the_original_patched(kind, method, how):
    model = fresh_model(kind)
    unpatched = logits(model, IDS)
    scaled = logits(patch_model(model, method, 4), IDS)
    copy_ = unpatch_model(copied(model, how))
    assert torch.equal(logits(copy_, IDS), unpatched)
    assert torch.equal(logits(model, IDS), scaled)
    verify(model)


@each_value(kind=KINDS, how=COPIED)
def test_undoing_the_original_leaves_a_copy_patched(kind, how):
    model = fresh_model(kind)
    unpatched = logits(model, IDS)
    scaled = logits(patch_model(model, "yarn", 4), IDS)
    copy_ = copied(model, how)
    unpatch_model(model)
    assert torch.equal(logits(model, IDS), unpatched)
    assert torch.equal(logits(copy_, IDS), scaled)
    verify(copy_)


@EVERY_KIND
def test_a_second_model_of_the_class_is_untouched(kind):
    second = fresh_model(kind)
    before = snapshot(second)
    with patched(fresh_model(kind), "dynamic_yarn", 4):
        assert_same(second, before)


@EVERY_KIND
def test_a_second_patch_is_refused_and_the_first_stays(kind):
    model = patch_model(fresh_model(kind), "yarn", 4)
    before = snapshot(model)
    with pytest.raises(AlreadyPatchedError, match=r"'yarn', factor 4.*replace=True"):
        patch_model(model, "linear", 2)
    assert_same(model, before)


@EVERY_KIND
def test_replace_equals_patching_the_unpatched_model(kind):
    twice = patch_model(
        patch_model(fresh_model(kind), "dynamic_yarn", 4), "linear", 2, replace=True
    )
    once = patch_model(fresh_model(kind), "linear", 2)
    assert torch.equal(logits(twice, IDS), logits(once, IDS))
    assert twice.config.to_dict() == once.config.to_dict()
    assert patch_info(twice) == patch_info(once)


@EVERY_KIND
def test_unpatching_a_replaced_patch_gives_the_unpatched_model(kind):
    model = fresh_model(kind)
    before = snapshot(model)
    patch_model(model, "dynamic_yarn", 4)
    patch_model(model, "linear", 2, replace=True)
    assert_same(unpatch_model(model), before)


def fail_at(monkeypatch, number):
    """Make the change with this number fail, as it would for want of memory."""
    apply, calls = AttributeChange.apply, iter(range(1000))

    def failing(change):
        if next(calls) == number:
            raise MemoryError
        apply(change)

    monkeypatch.setattr(AttributeChange, "apply", failing)


@each_value(kind=KINDS, number=range(4))
def test_a_failure_in_the_middle_restores_everything(kind, number, monkeypatch):
    model = fresh_model(kind)
    before = snapshot(model)
    fail_at(monkeypatch, number)
    with pytest.raises(MemoryError):
        patch_model(model, "dynamic_yarn", 4)
    monkeypatch.undo()
    assert_same(model, before)
    verify(patch_model(model, "yarn", 4))


@each_value(kind=KINDS, number=range(4), shift=1)
def test_a_failure_while_replacing_keeps_the_old_patch(kind, number, monkeypatch):
    model = patch_model(fresh_model(kind), "yarn", 4)
    before = snapshot(model)
    fail_at(monkeypatch, number)
    with pytest.raises(MemoryError):
        patch_model(model, "linear", 2, replace=True)
    monkeypatch.undo()
    assert_same(model, before)
    assert verify(model).method == "yarn"


def test_a_wrong_option_while_replacing_keeps_the_old_patch():
    model = patch_model(fresh_model("llama"), "yarn", 4)
    before = snapshot(model)
    with pytest.raises(MethodOptionError, match="beta_fast"):
        patch_model(model, "yarn", 8, replace=True, beta_fast=0.5)
    assert_same(model, before)
    assert verify(model).method == "yarn"


@pytest.mark.parametrize("body_fails", [False, True])
def test_a_replacing_context_manager_brings_the_former_patch_back(body_fails):
    model = patch_model(fresh_model("llama"), "yarn", 4)
    before = logits(model, IDS)
    try:
        with patched(model, "linear", 2, replace=True):
            assert patch_info(model).method == "linear"
            if body_fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert torch.equal(logits(model, IDS), before)
    assert verify(model).method == "yarn"


def test_unpatching_an_unpatched_model_is_refused():
    with pytest.raises(NotPatchedError, match="no patch"):
        unpatch_model(fresh_model("llama"))
