"""What the `distributed` section asks for: what reaches the Trainer, and which launches are refused."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import pretraining_tree
from transformers import TrainingArguments

from ropepatch.errors import ConfigError
from ropepatch.training import distributed, processes, trainer
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.sections import DistributedRecipe
from ropepatch.training.sequences import tokens_per_step
from ropepatch.training.trainer import training_arguments

RINGS = DistributedRecipe(fsdp=True, context_parallel=2)
ULYSSES = DistributedRecipe(sequence_parallel=2)


@pytest.fixture
def count(monkeypatch):
    """Makes this process one of as many, on a machine with GPUs and DeepSpeed, or without."""

    def pretend(number, *, gpus=True, deepspeed=True):
        launch = SimpleNamespace(num_processes=number)
        monkeypatch.setattr(distributed, "processes", lambda: launch)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
        find = {"deepspeed": object() if deepspeed else None}.get
        monkeypatch.setattr(distributed.importlib.util, "find_spec", find)

    return pretend


@pytest.mark.parametrize(
    ("recipe", "launch", "message"),
    [
        (DistributedRecipe(fsdp=True), (1,), r"found 1; run torchrun --nproc-per-node N -m"),
        (RINGS, (1,), r"found 1; run torchrun --nproc-per-node 2 -m"),
        (ULYSSES, (3,), r"3 are no whole number of groups"),
        (RINGS, (2, False), r"needs NVIDIA GPUs"),
        (ULYSSES, (2, True, False), r"pip install deepspeed"),
    ],
)
def test_a_launch_that_has_not_what_is_asked_is_refused(count, recipe, launch, message):
    number, gpus, deepspeed = (*launch, True, True)[:3]
    count(number, gpus=gpus, deepspeed=deepspeed)
    with pytest.raises(ConfigError, match=message):
        distributed.refuse_devices(recipe)


def test_launches_that_have_what_is_asked_are_let_in(count):
    for recipe in (DistributedRecipe(), DistributedRecipe(fsdp=True), RINGS, ULYSSES):
        count(8)
        distributed.refuse_devices(recipe)


def test_several_gpus_for_one_process_are_refused(monkeypatch):
    # The Trainer would split each batch over them, and the data would be read several times.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ConfigError, match=r"8 GPUs .* torchrun --nproc-per-node 8 -m .*DEVICES=0"):
        processes.refuse_odd_launch()


@pytest.fixture
def given(count, monkeypatch, tmp_path):
    """What TrainingArguments would be given for a section, by eight processes."""

    def capture(section):
        got = {}
        monkeypatch.setattr(trainer, "TrainingArguments", lambda **options: got.update(options))
        recipe = parse_recipe(pretraining_tree(tmp_path))
        count(8)
        training_arguments(recipe.training, recipe.output_dir, section)
        return got

    return capture


def test_fsdp_reaches_the_trainer_in_its_second_version(given, tmp_path):
    got = given(DistributedRecipe(fsdp=True))
    assert "parallelism_config" not in got
    sharding = {"fsdp": got["fsdp"], "fsdp_config": got["fsdp_config"]}
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **sharding)
    assert arguments.fsdp_plugin_args["fsdp_version"] == 2
    assert arguments.fsdp_plugin_args["state_dict_type"] == "FULL_STATE_DICT"


def test_context_parallelism_reaches_the_trainer(given):
    got = given(DistributedRecipe(fsdp=True, context_parallel=4))
    config = got["parallelism_config"]
    assert got["fsdp"] is True
    assert (config.cp_size, config.dp_shard_size, config.total_size) == (4, 2, 8)
    assert config.cp_backend == "torch"


def test_ulysses_reaches_the_trainer_on_deepspeed(given):
    got = given(DistributedRecipe(sequence_parallel=4))
    config = got["parallelism_config"]
    assert "fsdp" not in got
    assert got["deepspeed"]["zero_optimization"] == {"stage": 2}
    assert (config.sp_size, config.dp_replicate_size, config.total_size) == (4, 2, 8)
    assert (config.sp_backend, config.sp_handler.sp_attn_implementation) == ("deepspeed", "sdpa")


def test_one_device_is_told_nothing(given):
    assert not {"fsdp", "deepspeed", "parallelism_config"} & given(DistributedRecipe()).keys()


@pytest.mark.parametrize(
    ("section", "tokens"),
    [
        ({}, 8 * 128),
        ({"fsdp": True}, 8 * 128),
        ({"fsdp": True, "context_parallel": 4}, 2 * 128),
        ({"sequence_parallel": 8}, 128),
    ],
)
def test_tokens_of_a_step_are_those_of_all_groups(count, tmp_path, section, tokens):
    recipe = parse_recipe({**pretraining_tree(tmp_path), "distributed": section})
    count(8)
    assert tokens_per_step(recipe) == tokens  # 2 sequences × 2 accumulated × 32 tokens = 128


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"context_parallel": 2}, {}, "context_parallel needs fsdp: true"),
        ({"fsdp": True, "sequence_parallel": 2}, {}, "sequence_parallel runs on DeepSpeed"),
        ({"context_parallel": 2, "sequence_parallel": 2}, {}, "found both"),
        ({"fsdp": True, "context_parallel": 3}, {}, "data.length must be a multiple of 6"),
        ({"sequence_parallel": 2}, {"positions": {"target": 64}}, "mask that data.positions needs"),
        ({"sequence_parallel": 2}, {"patch": "dynamic_ntk"}, "'dynamic_ntk' scales by"),
        ({"sequence_parallel": 2}, {"group": 8}, "their own attention"),
        ({"fsdp": True}, {"merge": True}, "lora.merge needs whole weights"),
        ({"fsdp": True}, {"quantization": "nf4"}, "does not shard the 4-bit weights"),
    ],
)
def test_sections_that_contradict_the_recipe_are_refused(tmp_path, section, changes, message):
    tree = {**pretraining_tree(tmp_path), "distributed": section}
    match changes:
        case {"patch": method}:
            tree["patch"] = {"method": method}
        case {"group": _}:
            tree["training"]["shifted_attention"] = changes
        case {"quantization": _}:
            tree |= {"model": {"path": "some/model", **changes}, "lora": {}}
        case {"merge": _}:
            tree |= {"model": {"path": "some/model"}, "lora": changes}
        case _:
            tree["data"] |= changes
    with pytest.raises(ConfigError, match=message):
        parse_recipe(tree)
