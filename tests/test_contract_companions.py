"""Patched models beside PEFT, accelerate's hooks and torch.compile."""

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from covering import each_value
from loops import one_layer
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import KINDS, fresh_model, logits, tiny_config, token_ids
from transformers import AutoModel, AutoModelForSequenceClassification

from ropepatch import patch_info, patch_model, patched, unpatch_model, verify
from ropepatch.attention.rotary import ScaledRotary

IDS = token_ids(2, 40)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings(
        "ignore:The following (rank|alpha)_pattern keys"
    ),  # mixtures of experts
]
METHODS = ["yarn", "dynamic_yarn"]
BOTH_METHODS = pytest.mark.parametrize("method", METHODS)


def with_lora(model) -> PeftModel:
    """An adapter that changes the logits, the same each time."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config).eval()


@each_value(kind=KINDS, method=METHODS)
def test_patching_before_and_after_peft_gives_the_same_model(kind, method):
    before = with_lora(patch_model(fresh_model(kind), method, 4))
    after = patch_model(with_lora(fresh_model(kind)), method, 4)
    assert torch.equal(logits(after, IDS), logits(before, IDS))
    assert patch_info(after) == patch_info(before)
    assert verify(after) == verify(before)


@each_value(kind=KINDS, method=METHODS, shift=1)
def test_unpatching_through_peft_restores_the_adapted_model(kind, method):
    model = with_lora(fresh_model(kind))
    before = logits(model, IDS)
    unpatch_model(patch_model(model, method, 4))
    assert torch.equal(logits(model, IDS), before)
    assert patch_info(model) is None


@each_value(kind=KINDS, method=METHODS)
def test_merging_an_adapter_keeps_the_patch(kind, method):
    patched_first = with_lora(patch_model(fresh_model(kind), method, 4)).merge_and_unload()
    merged_first = patch_model(with_lora(fresh_model(kind)).merge_and_unload(), method, 4)
    assert torch.equal(logits(patched_first, IDS), logits(merged_first, IDS))
    assert verify(patched_first) == verify(merged_first)


@BOTH_METHODS
def test_generate_through_peft_equals_generate_of_the_merged_model(method):
    model = with_lora(patch_model(fresh_model("llama"), method, 4))
    arguments = {"input_ids": IDS, "max_new_tokens": 5, "do_sample": False}
    adapted = model.generate(**arguments)
    assert torch.equal(model.merge_and_unload().generate(**arguments), adapted)


@each_value(kind=KINDS, method=METHODS, shift=1)
def test_patching_an_offloaded_model_gives_the_same_logits(kind, method):
    expected = logits(patch_model(fresh_model(kind), method, 4), IDS)
    model = cpu_offload(fresh_model(kind), execution_device=torch.device("cpu"))
    assert torch.equal(logits(patch_model(model, method, 4), IDS), expected)


@EVERY_KIND
def test_offloading_a_patched_model_gives_the_same_logits(kind):
    model = patch_model(fresh_model(kind), "yarn", 4)
    expected = logits(model, IDS)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(logits(model, IDS), expected)
    remove_hook_from_submodules(model)


@BOTH_METHODS
@pytest.mark.parametrize("buffers", [False, True])
def test_verify_passes_on_an_offloaded_model(method, buffers):
    model = patch_model(fresh_model("llama"), method, 4)
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=buffers)
    assert verify(model).method == method


@EVERY_KIND
def test_unpatching_an_offloaded_model_gives_back_the_stock_module_with_its_hook(kind):
    model = cpu_offload(fresh_model(kind), execution_device=torch.device("cpu"))
    before = logits(model, IDS)
    path, stock = next(
        (name, module) for name, module in model.named_modules() if name.endswith("rotary_emb")
    )
    hook = stock._hf_hook
    unpatch_model(patch_model(model, "yarn", 4))
    assert model.get_submodule(path) is stock
    assert stock._hf_hook is hook
    assert torch.equal(logits(model, IDS), before)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "cohere"])
def test_a_static_method_compiles_to_one_graph(kind):
    model = patch_model(fresh_model(kind), "yarn", 4)
    model = model if kind == "gemma3_text" else one_layer(model)
    expected = logits(model, IDS, use_cache=False)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled, IDS, use_cache=False), expected, atol=1e-6, rtol=0)


def test_a_patch_is_found_through_torch_compile():
    model = torch.compile(patch_model(fresh_model("llama"), "yarn", 4), backend="eager")
    assert patch_info(model).method == "yarn"
    unpatch_model(model)
    assert patch_info(model) is None


@BOTH_METHODS
@pytest.mark.parametrize("head", [AutoModel, AutoModelForSequenceClassification])
def test_models_with_other_heads_or_none_are_patched(head, method):
    torch.manual_seed(0)
    model = patch_model(head.from_config(tiny_config("llama")).eval(), method, 4)
    assert verify(model).method == method


@BOTH_METHODS
def test_a_model_inside_a_wrapper_is_patched(method):
    wrapper = torch.nn.ModuleDict({"module": fresh_model("llama")})
    patch_model(wrapper, method, 4)
    assert verify(wrapper).method == patch_info(wrapper).method == method
    unpatch_model(wrapper)
    assert patch_info(wrapper) is None


@EVERY_KIND
def test_replaced_modules_are_the_sites_that_patch_info_names(kind):
    with patched(fresh_model(kind), "yarn", 4) as model:
        replaced = [n for n, module in model.named_modules() if isinstance(module, ScaledRotary)]
        assert list(patch_info(model).sites) == replaced
