"""What a patch of a score bias leaves alone, survives, and takes back."""

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from peft import LoraConfig, get_peft_model
from tiny_bias_models import (
    KINDS,
    ONE_EACH,
    RELATIVE_KINDS,
    TRAINED_LENGTH,
    answers,
    assert_near,
    bias_config,
    bias_model,
    fresh_bias_model,
    inputs,
    padded,
)
from tiny_models import token_ids

from ropepatch import patch_info, patch_model, patched, unpatch_model, verify
from ropepatch.errors import AlreadyPatchedError
from ropepatch.surgery import AttributeChange

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
IDS = token_ids(2, 30)
LONG = token_ids(2, 48)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
METHODS = {True: ("linear", "log"), False: ("linear", "dynamic_linear")}
PAIRS = [(kind, method) for kind in ONE_EACH for method in METHODS[kind in RELATIVE_KINDS]]
EVERY_METHOD = pytest.mark.parametrize(("kind", "method"), PAIRS)


def snapshot(model):
    """Everything about a model that a patch might change and must put back."""
    return (
        answers(model, IDS),
        {name: set(vars(module)) for name, module in model.named_modules()},
        {name: dict(module._forward_pre_hooks) for name, module in model.named_modules()},
        {name: dict(module._forward_hooks) for name, module in model.named_modules()},
        [dict(vars(each)) for each in configs(model)],
        model.generation_config.to_dict(),
    )


def configs(model):
    """Every config object in a model, each once: T5's parts have copies of their own."""
    found = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in found if config is not None}.values())


def assert_same(model, before):
    after = snapshot(model)
    assert torch.equal(after[0], before[0])
    assert after[1:] == before[1:]


@EVERY_METHOD
def test_unpatching_restores_everything(kind, method):
    model = fresh_bias_model(kind)
    before = snapshot(model)
    patch_model(model, method, 4)
    answers(model, LONG)
    model.generate(LONG, max_new_tokens=2, do_sample=False)
    unpatch_model(model)
    assert_same(model, before)
    assert patch_info(model) is None


@EVERY_KIND
def test_the_state_dict_does_not_change(kind):
    model = fresh_bias_model(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = patch_model(model, "linear", 4).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@EVERY_METHOD
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_patched_alike_and_independent(kind, method, how):
    model = fresh_bias_model(kind)
    before = snapshot(model)
    scaled = answers(patch_model(model, method, 4), LONG)
    copied = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(answers(copied, LONG), scaled)
    assert verify(copied) == verify(model)
    unpatch_model(copied)
    assert torch.equal(answers(copied, IDS), before[0])
    assert torch.equal(answers(model, LONG), scaled)
    verify(model)
    assert_same(unpatch_model(model), before)


@EVERY_KIND
def test_a_copy_reads_its_own_tables(kind):
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    scaled = answers(model, LONG)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(answers(copied, LONG), scaled)


@EVERY_METHOD
def test_a_second_model_that_shares_the_config_is_untouched(kind, method):
    config = bias_config(kind)
    first, second = (type(fresh_bias_model(kind))(config).eval() for _ in range(2))
    before = answers(second, IDS)
    with patched(first, method, 4):
        assert torch.equal(answers(second, IDS), before)
        assert patch_info(second) is None
    assert torch.equal(answers(second, IDS), before)


@EVERY_KIND
def test_a_second_patch_is_refused_and_replace_equals_patching_anew(kind):
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    before = answers(model, LONG)
    with pytest.raises(AlreadyPatchedError, match=r"'linear', factor 4.*replace=True"):
        patch_model(model, "linear", 2)
    assert torch.equal(answers(model, LONG), before)
    patch_model(model, "linear", 2, replace=True)
    once = patch_model(fresh_bias_model(kind), "linear", 2)
    assert torch.equal(answers(model, LONG), answers(once, LONG))
    assert patch_info(model) == patch_info(once)


@EVERY_KIND
@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_failure_in_the_middle_restores_everything(kind, number, monkeypatch):
    model = fresh_bias_model(kind)
    before = snapshot(model)
    apply, calls = AttributeChange.apply, iter(range(1000))

    def failing(change):
        if next(calls) == number:
            raise MemoryError
        apply(change)

    monkeypatch.setattr(AttributeChange, "apply", failing)
    with pytest.raises(MemoryError):
        patch_model(model, "linear", 4)
    monkeypatch.undo()
    assert_same(model, before)


@EVERY_KIND
def test_patch_info_names_the_attention_modules_and_the_lengths(kind):
    model = patch_model(fresh_bias_model(kind), "linear", 4)
    info = patch_info(model)
    assert info.mechanism == ("relative" if kind in RELATIVE_KINDS else "alibi")
    assert info.original_max_position_embeddings == TRAINED_LENGTH
    assert info.max_position_embeddings == 4 * TRAINED_LENGTH
    attentions = [n for n, m in model.named_modules() if type(m).__name__.endswith("Attention")]
    assert sorted(info.sites) == sorted(
        name for name in attentions if not name.endswith(("layer.0", "layer.1"))
    )


def with_lora(model):
    """An adapter that changes the logits, the same each time."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config).eval()


@EVERY_METHOD
def test_patching_before_and_after_peft_gives_the_same_model(kind, method):
    first = with_lora(patch_model(fresh_bias_model(kind), method, 4))
    after = patch_model(with_lora(fresh_bias_model(kind)), method, 4)
    assert torch.equal(answers(after, LONG), answers(first, LONG))
    assert verify(after) == verify(first)
    merged = patch_model(with_lora(fresh_bias_model(kind)).merge_and_unload(), method, 4)
    assert torch.equal(answers(first.merge_and_unload(), LONG), answers(merged, LONG))


@pytest.mark.parametrize("kind", ONE_EACH)
def test_a_patch_and_offloading_go_together_in_either_order(kind):
    expected = answers(patch_model(fresh_bias_model(kind), "linear", 4), LONG)
    model = cpu_offload(fresh_bias_model(kind), execution_device=torch.device("cpu"))
    before = answers(model, IDS)
    assert torch.equal(answers(patch_model(model, "linear", 4), LONG), expected)
    assert verify(model).method == "linear"
    assert torch.equal(answers(unpatch_model(model), IDS), before)

    model = patch_model(fresh_bias_model(kind), "linear", 4)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(answers(model, LONG), expected)
    assert verify(model).method == "linear"
    remove_hook_from_submodules(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ONE_EACH)
def test_a_model_may_be_cast_before_or_after_it_is_patched(kind, dtype):
    first = patch_model(fresh_bias_model(kind), "linear", 4).to(dtype)
    last = patch_model(fresh_bias_model(kind).to(dtype), "linear", 4)
    assert torch.equal(answers(first, LONG), answers(last, LONG))
    assert answers(first, LONG).isfinite().all()
    assert verify(first).method == "linear"


def static_decoder():
    return fresh_bias_model("bloom")


def static_encoder():
    return bias_model("t5", head="EncoderModel")


@pytest.mark.parametrize("build", [static_decoder, static_encoder])
def test_a_static_method_compiles_to_one_graph(build):
    model = patch_model(build(), "linear", 4)
    ids, mask = padded(48, "right")
    more = {} if hasattr(model, "encoder") else {"use_cache": False}
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, **more)[0]
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        got = compiled(input_ids=ids, attention_mask=mask, **more)[0]
    assert_near(got[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("kind", ["bloom", "t5"])
def test_lengths_beyond_every_block_of_queries_agree_with_eager(kind):
    """Two blocks of 256 queries and a rest, through a whole model."""
    ids, mask = padded(530, "right")
    fast = patch_model(fresh_bias_model(kind), "linear", 4)
    dense = patch_model(fresh_bias_model(kind), "linear", 4, attention="eager")
    kept = mask.bool()
    assert_near(answers(fast, ids, mask)[kept], answers(dense, ids, mask)[kept])
    assert set(inputs(fast, ids)) == set(inputs(dense, ids))
