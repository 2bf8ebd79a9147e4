"""Options that need an accelerator: refused without one, and handed on as they should be with one."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from tiny_runs import extension_tree, pretraining, pretraining_tree
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ropepatch.errors import ConfigError
from ropepatch.training import models, quantization, requirements, runner
from ropepatch.training.memory import estimate_memory, longest_batch
from ropepatch.training.plan import plan_run
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.runner import prepare, train

OFFLOAD = {"gradient_checkpointing": True, "offload_activations": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(pretraining(tmp_path_factory.mktemp("base"), max_steps=1)).directory


def quantized_tree(tmp_path, base):
    tree = extension_tree(tmp_path, base)
    tree["model"] |= {"quantization": "nf4", "dtype": "bfloat16"}
    return tree


@pytest.fixture
def cuda(monkeypatch):
    """A machine that says it has CUDA and what is installed for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(requirements, "is_liger_kernel_available", lambda: True)


def refusal(recipe, start=train):
    with pytest.raises(ConfigError) as caught:
        start(recipe)
    return str(caught.value)


@pytest.mark.parametrize("start", [train, plan_run])
@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (OFFLOAD, "there is no accelerator here"),
        ({"liger": True}, "training.liger needs an NVIDIA GPU"),
    ],
)
def test_options_for_accelerators_are_refused_without_one(tmp_path, training, expected, start):
    assert expected in refusal(pretraining(tmp_path, **training), start)


def test_quantization_is_refused_before_anything_is_fetched(tmp_path, monkeypatch):
    tree = quantized_tree(tmp_path, "some/name")
    tree["data"]["source"] = str(tmp_path / "missing.txt")
    assert "model.quantization: nf4 needs an NVIDIA GPU" in refusal(parse_recipe(tree))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install bitsandbytes" in refusal(parse_recipe(tree))


def test_liger_is_refused_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "pip install liger-kernel" in refusal(pretraining(tmp_path, liger=True))


def test_options_that_contradict_each_other_are_refused(tmp_path):
    tree = pretraining_tree(tmp_path, offload_activations=True)
    tree["model"]["quantization"] = "nf4"
    said = refusal(tree, parse_recipe)
    assert "offload_activations moves what gradient_checkpointing keeps" in said
    assert "quantization is for the weights of a checkpoint" in said
    tree = quantized_tree(tmp_path, "somewhere")
    del tree["lora"]
    assert "model.quantization needs lora" in refusal(tree, parse_recipe)


def stub_liger(monkeypatch, *model_types):
    """A liger_kernel that notes what it is asked to do."""
    asked = []
    package, kernels = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    patches = ModuleType("liger_kernel.transformers.monkey_patch")
    kernels._apply_liger_kernel_to_instance = lambda **options: asked.append(options)
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = dict.fromkeys(model_types)
    for module in (package, kernels, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    return asked


@pytest.mark.parametrize("chunked", [False, True])
def test_liger_leaves_rotary_alone_and_the_loss_where_it_is_chunked(
    tmp_path, monkeypatch, cuda, chunked
):
    asked = stub_liger(monkeypatch, "llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runner, "require_machine", lambda recipe: None)
    train(pretraining(tmp_path, max_steps=1, liger=True, chunked_loss=chunked))
    (options,) = asked
    assert isinstance(options.pop("model"), LlamaForCausalLM)
    loss = {"fused_linear_cross_entropy": False} if chunked else {}
    assert options == {"rope": False, "cross_entropy": False, **loss}


def test_a_model_that_liger_would_pass_over_is_refused(tmp_path, monkeypatch):
    stub_liger(monkeypatch, "mistral")
    monkeypatch.setattr(runner, "require_machine", lambda recipe: None)
    said = refusal(pretraining(tmp_path, liger=True))
    assert "no Liger kernels for llama, only for mistral" in said


def test_offloading_reaches_the_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "require_machine", lambda recipe: None)
    recipe = pretraining(tmp_path, **OFFLOAD)
    given = prepare(RunDirectory(recipe)).args.activation_checkpointing_kwargs
    assert given == {"use_reentrant": False, "offload": True}


def test_a_base_of_4_bits_is_loaded_and_prepared_as_qlora_has_it(tmp_path, base, monkeypatch, cuda):
    seen = {}
    real = AutoModelForCausalLM.from_pretrained

    def load(source, **options):
        seen["loading"] = {key: options.pop(key) for key in ("quantization_config", "device_map")}
        return real(source, **options)

    def prepare_for_kbit(model, **options):
        seen["prepared"] = (type(model), options)
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(quantization, "prepare_model_for_kbit_training", prepare_for_kbit)
    recipe = parse_recipe(quantized_tree(tmp_path, base))
    model = models.load_model(recipe, models.load_tokenizer(recipe, []))
    config = seen["loading"]["quantization_config"]
    assert config.load_in_4bit
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert seen["loading"]["device_map"] == {"": 0}
    assert seen["prepared"] == (LlamaForCausalLM, {"use_gradient_checkpointing": False})
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_a_base_of_4_bits_is_estimated_at_half_a_byte_for_each_weight(tmp_path, base, monkeypatch):
    monkeypatch.setattr(runner, "require_machine", lambda recipe: None)
    recipe = parse_recipe(quantized_tree(tmp_path, base))
    trainer = prepare(RunDirectory(recipe), weights=False)
    linear = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    others = 450 * 32 + 5 * 32  # embeddings (tied) and norms, in float32
    trained = sum(each.numel() for each in trainer.trained.parameters() if each.requires_grad)
    assert trained == 2 * 4 * (4 * 64 + 3 * 80)
    # 0.127 bits for the scales of blocks (QLoRA, arXiv 2305.14314, §3).
    expected = linear * (4 + 0.127) / 8 + 4 * (others + trained)
    estimated = estimate_memory(trainer, longest_batch(trainer))
    assert estimated.weights == pytest.approx(expected, rel=1e-3)
    dtypes = {
        type(each): each.weight.dtype
        for each in trainer.trained.modules()
        if hasattr(each, "weight")
    }
    assert dtypes[nn.Embedding] == torch.float32
