"""Dry runs: what they print, that they need no weights and leave nothing, and what they refuse."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml
from tiny_runs import LENGTH, extension, extension_tree, pretraining, pretraining_tree
from transformers import AutoTokenizer

from ropepatch import patch_model, save_pretrained
from ropepatch.checkpoint.opening import open_model
from ropepatch.cli import main
from ropepatch.errors import (
    AlreadyPatchedError,
    CheckpointError,
    ConfigError,
    DataError,
    RopepatchError,
)
from ropepatch.precision import PrecisionChoice
from ropepatch.training import plan
from ropepatch.training.memory import MemoryEstimate
from ropepatch.training.plan import plan_run
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train

LARGE_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,  # of the 32 of a Llama of 8B
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": LENGTH,
}

FALCON_H1 = {
    "model_type": "falcon_h1",
    "mamba_d_ssm": 32,
    "mamba_n_heads": 2,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(pretraining(tmp_path_factory.mktemp("base"), max_steps=1)).directory


def without_weights(base, path, **config):
    """A copy of a checkpoint's directory, all but its weights."""
    shutil.copytree(base, path, ignore=shutil.ignore_patterns("*.safetensors"))
    if config:
        (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_dry_run_prints_the_recipe_and_its_plan_and_leaves_nothing(tmp_path, base, capsys):
    path = tmp_path / "recipe.yaml"
    tree = extension_tree(tmp_path, without_weights(base, tmp_path / "bare"))
    path.write_text(yaml.safe_dump(tree))
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", str(path), "--dry-run", "training.max_steps=3", "lora.r=2"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    tree["training"]["max_steps"], tree["lora"]["r"] = 3, 2
    assert parse_recipe(yaml.safe_load(said)) == parse_recipe(tree)
    lines = [line.removeprefix("# ").rsplit("  ", 1) for line in said.splitlines() if "# " in line]
    plan = {name.strip(): text.strip() for name, text in lines}
    assert plan["tokens per step"] == "512"  # 2 × 2 sequences of 4 × 32 tokens
    assert plan["steps"] == "3"
    assert plan["tokens"] == "1,536"
    # Rank 2 on four projections 32 → 32, two 32 → 48 and one 48 → 32, in both layers.
    assert plan["trainable parameters"] == f"{2 * 2 * (4 * 64 + 3 * 80):,}"
    assert plan["precision"] == "fp32: as the recipe says"
    assert {"weights", "gradients", "optimizer", "activations", "logits"} < plan.keys()


@pytest.mark.parametrize("fsdp", [False, True])
def test_under_fsdp_a_plan_says_that_it_counts_whole_weights(tmp_path, monkeypatch, fsdp):
    memory = MemoryEstimate(weights=8, gradients=4, optimizer=2, activations=1, logits=1)
    planned = plan.Plan(128, 6, 10, 10, PrecisionChoice("fp32", "as asked"), memory)
    monkeypatch.setattr(plan, "plan_run", lambda recipe: planned)  # which takes several processes
    recipe = parse_recipe({**pretraining_tree(tmp_path), "distributed": {"fsdp": fsdp}})
    assert ("are counted whole; FSDP leaves each device a part" in plan.plan_text(recipe)) is fsdp


def test_a_large_model_is_planned_without_its_weights(tmp_path, base):
    path = without_weights(base, tmp_path / "large", **LARGE_LLAMA)
    tree = extension_tree(tmp_path, path)
    tree["model"]["dtype"] = "bfloat16"
    tree["training"]["gradient_checkpointing"] = True
    plan = plan_run(parse_recipe(tree))
    layers = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
    parameters = 2 * 128256 * 4096 + layers + 4096
    assert plan.parameters - plan.trainable_parameters == parameters
    assert plan.memory.weights == 2 * parameters + 4 * plan.trainable_parameters


def test_a_patched_checkpoint_is_planned_as_it_is(tmp_path, base):
    model = patch_model(open_model(str(base)), "yarn", 2)
    save_pretrained(model, tmp_path / "patched", AutoTokenizer.from_pretrained(base))
    bare = without_weights(tmp_path / "patched", tmp_path / "bare")
    recipe = extension(tmp_path, bare)
    assert plan_run(replace(recipe, patch=None)).parameters > 0
    with pytest.raises(AlreadyPatchedError):
        plan_run(recipe)


def test_what_a_start_would_refuse_is_refused(tmp_path, base):
    recipe = extension(tmp_path, base)
    too_long = extension_tree(tmp_path, base)
    too_long["data"]["length"] = 1 << 20
    too_long["patch"] = None
    with pytest.raises(DataError, match="tokens in all, and a sequence needs 1048576"):
        plan_run(parse_recipe(too_long))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        plan_run(extension(tmp_path, tmp_path / "a" / "b" / "c"))
    with pytest.raises(ConfigError, match="belongs to a run of another recipe"):
        plan_run(replace(recipe, output_dir=str(base.parent)))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write to output_dir"):
        plan_run(replace(recipe, output_dir=str(tmp_path / "file" / "run")))
    adapter = train(recipe).directory
    with pytest.raises(ConfigError, match="is an adapter"):
        plan_run(replace(extension(tmp_path, adapter), output_dir=str(tmp_path / "other")))


def test_text_too_short_for_a_fit_is_refused_without_weights(tmp_path, base):
    tree = extension_tree(tmp_path, without_weights(base, tmp_path / "bare"))
    tree["patch"] = {"method": "kerple_log", "factor": 4, "fit": "profile"}
    tree["data"] = {"source": str(tmp_path / "short"), "length": 8}
    (tmp_path / "short").mkdir()
    for number in range(60):
        (tmp_path / "short" / f"{number}.txt").write_text("a few words " * 3)
    with pytest.raises(DataError, match="no document has 32 tokens"):
        plan_run(parse_recipe(tree))


@pytest.mark.parametrize("method", ["yarn", "dynamic_ntk"])
def test_shifted_attention_is_planned_below_a_patch(tmp_path, base, method):
    tree = extension_tree(tmp_path, base)
    tree["patch"]["method"] = method
    whole = plan_run(parse_recipe(tree)).memory
    tree["training"]["shifted_attention"] = {"group": 16}
    # Attention dropout makes a matrix of what is seen: 128² pairs, or 128 × 16.
    assert plan_run(parse_recipe(tree)).memory.activations < 0.7 * whole.activations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distributed": {"fsdp": True}}, r"distributed\.fsdp is for several processes; found 1"),
        ({"training": {"report_to": ["nobody"]}}, "there is no reporter 'nobody'"),
        ({"patch": {"method": "dynamic_ntk"}, "data": {"packing": {}}}, "scales by the tokens"),
    ],
)
def test_what_a_launch_would_refuse_is_refused_without_weights(tmp_path, base, changes, message):
    tree = extension_tree(tmp_path, without_weights(base, tmp_path / "bare"))
    changed = {name: tree.get(name, {}) | section for name, section in changes.items()}
    with pytest.raises(ConfigError, match=message):
        plan_run(parse_recipe({**tree, **changed}))


@pytest.mark.parametrize(
    ("training", "config", "expected"),
    [
        ({}, {"hiden_size": 3}, "did you mean hidden_size?"),
        ({}, {"vocab_size": 100}, "tokenizer does not fit the model"),
        # Falcon-H1 multiplies its logits, and no other model does it so.
        (
            {"chunked_loss": True},
            {**FALCON_H1, "lm_head_multiplier": 3.0},
            "does not know how FalconH1ForCausalLM makes its loss",
        ),
    ],
)
def test_models_and_options_are_checked_without_weights(tmp_path, training, config, expected):
    tree = pretraining_tree(tmp_path, **training)
    tree["model"]["config"] |= config
    with pytest.raises(RopepatchError) as caught:
        plan_run(parse_recipe(tree))
    assert expected in str(caught.value)


def test_overrides_may_stand_on_both_sides_of_an_option_and_options_may_not(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(pretraining_tree(tmp_path)))
    behind = ["training.max_steps=3", "--dry-run", "data.length=16"]
    assert main(["train", str(path), *behind]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert (resolved["training"]["max_steps"], resolved["data"]["length"]) == (3, 16)
    both = ["train", str(path), "--dry-run", "--preview"]
    for wrong in (both, ["train", str(path), "--dry-rum"], ["inspect", str(path), "a=b"]):
        with pytest.raises(SystemExit):
            main(wrong)
    assert "unrecognized arguments: a=b" in capsys.readouterr().err
