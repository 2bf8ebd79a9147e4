"""Two processes on CPUs (gloo) against one process with twice the batch."""

import copy
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import two_processes
import yaml
from safetensors.torch import load_file
from tiny_runs import (
    CONFIG,
    T5_CONFIG,
    extension_tree,
    pretraining_tree,
    seq2seq_tree,
    write_corpus,
)
from two_processes import torchrun

from ropepatch import load_pretrained, patch_info, verify
from ropepatch.errors import ConfigError
from ropepatch.training.processes import refuse_odd_launch
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train

# Sums of float32 in another order. Losses of 5 have a last digit of 5e-7; Adam makes of a gradient
# near 0 a step of up to the learning rate (1e-2) whatever is left of it.
LOSS_TOLERANCE = 2e-6
WEIGHT_TOLERANCE = 5e-5

BLOOM = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2, "seq_length": 32}
SHARDED = ("lora", "bloom")


def trees(root, base):
    """Recipes by name; random numbers differ between one process and two, so there is no dropout.

    `lora` is interrupted, and goes on.
    """
    lora = extension_tree(root, base, train_embeddings=True, train_norms=True, dropout=0.0)
    bloom = pretraining_tree(root, chunked_loss=True)
    bloom["model"]["config"] = BLOOM
    bloom["patch"] = {"method": "linear", "factor": 4}
    bloom["data"]["length"] = 128
    cases = {"ddp": lora, "lora": lora, "bloom": bloom}
    for name, tree in cases.items():
        tree = cases[name] = {**copy.deepcopy(tree), "output_dir": str(root / name)}
        tree["training"]["max_steps"] = 4
        if name in SHARDED:
            tree["distributed"] = {"fsdp": True}
    return cases


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def cases(root):
    write_corpus(root / "corpus.txt")
    plain = pretraining_tree(root / ".", max_steps=2)
    plain["model"]["config"] = CONFIG
    return trees(root, train(parse_recipe(plain)).directory)


@pytest.fixture(scope="module")
def launch(root, cases):
    """All recipes on two processes; one that cannot start; one whose second process breaks off."""
    absurd = {**cases["ddp"], "model": {"path": "no/such/model"}, "output_dir": str(root / "none")}
    broken = {**cases["ddp"], "output_dir": str(root / "broken")}
    (root / "absurd.yaml").write_text(yaml.safe_dump(absurd))
    (root / "cases.yaml").write_text(yaml.safe_dump({**cases, "broken": broken}))
    done = torchrun(two_processes.__file__, root / "cases.yaml", root / "report.json")
    assert (root / "report.json.1").exists(), done.stderr
    return done


@pytest.fixture(scope="module")
def reports(root, launch):
    return [json.loads((root / f"report.json.{number}").read_text()) for number in (0, 1)]


@pytest.fixture(scope="module")
def alone(root, cases):
    """Where one process with twice the batch has its run of a recipe, and what it saw of that."""

    @cache
    def run(name):
        tree = {**copy.deepcopy(cases[name]), "output_dir": str(root / f"{name}-alone")}
        tree["training"]["per_device_batch_size"] *= 2
        tree.pop("distributed", None)
        watch = two_processes.Watch("alone")
        train(parse_recipe(tree), callbacks=[watch])
        return root / f"{name}-alone", watch.seen

    return run


def weights(run):
    return load_file(next((run / "final").glob("*model.safetensors")))


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


NAMES = ["ddp", *SHARDED]


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_one_process_with_twice_the_batch(root, launch, alone, name):
    steps, values = zip(*losses(root / name), strict=True)
    assert steps == (1, 2, 3, 4)
    expected = [value for _, value in losses(alone(name)[0])]
    assert values == pytest.approx(expected, abs=LOSS_TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_saved_weights_are_those_of_one_process_and_whole(root, launch, alone, name):
    ours, reference = weights(root / name), weights(alone(name)[0])
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in reference.items()
    }
    for key, value in reference.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=WEIGHT_TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_loads_with_its_patch(root, launch, name):
    model = load_pretrained(root / name / "final")
    assert patch_info(model).factor == 4
    verify(model)


def test_fsdp_leaves_each_process_half_of_every_weight(reports):
    assert [reports[0][name]["sharded"] for name in NAMES] == [False, True, True]
    for name in SHARDED:
        shares = [report[name]["share"] for report in reports]
        assert sum(shares) == pytest.approx(1.0)
        assert shares[0] == pytest.approx(0.5, abs=0.01)


def test_batches_of_the_processes_together_are_those_of_one(reports, alone):
    first, second = (report["ddp"]["batches"] for report in reports)
    together = [a + b for a, b in zip(first, second, strict=True)]
    assert together == alone("ddp")[1]["batches"]


def test_progress_is_told_by_one_process(reports):
    assert [report["ddp"]["told"] for report in reports] == [4, 0]


def test_a_process_that_fails_ends_the_other_and_keeps_the_last_checkpoint(launch, root):
    assert launch.returncode != 0
    assert "process 1 has no disk" in launch.stderr
    kept = {path.name for path in (root / "broken").iterdir() if not path.name.startswith(".")}
    assert kept == {
        "checkpoint-2",
        "environment.json",
        "inputs.json",
        "loss.png",
        "metrics.jsonl",
        "recipe.yaml",
        "ropepatch.json",
    }


def test_a_run_of_two_processes_is_not_gone_on_with_by_one(launch, root, cases):
    tree = {**cases["ddp"], "output_dir": str(root / "broken")}
    with pytest.raises(ConfigError, match=r"run on 2 process\(es\), and this one has 1"):
        train(parse_recipe(tree))


def test_a_mistake_that_all_processes_meet_is_told_once(launch, reports):
    # By the run and by the preview, of which each process finds it.
    assert launch.stderr.count("ropepatch: error: there is no checkpoint at no/such/model") == 2
    assert [report["codes"] for report in reports] == [[2, 2, 2, 2]] * 2


def test_a_mistake_in_the_recipe_itself_is_told_once(launch):
    mistake = "unknown key training.max_stps; did you mean max_steps?"
    assert launch.stderr.count(mistake) == 1


def test_a_mistake_that_one_process_meets_is_told_by_that_one(launch):
    said = launch.stderr
    assert said.count("ropepatch: error: cannot read the recipe") == 1
    assert said.count("ropepatch: error: process 1 of this run failed; its message says why") == 1


def test_accelerate_launch_that_starts_one_process_for_two_is_refused(root, monkeypatch):
    # The training would end well, on one process. What the launcher leaves in the environment may
    # change with its version.
    (root / "tell.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    told = subprocess.check_output([*launcher, root / "tell.py"], stderr=subprocess.DEVNULL)
    assert told.count(b"\n") == 1
    for name, value in json.loads(told).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"alone.* run torchrun --nproc-per-node N -m ropepatch"):
        refuse_odd_launch()


def test_the_loss_of_t5_is_that_of_its_tokens_however_a_step_is_split(root):
    values = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        split = {"per_device_batch_size": batch, "gradient_accumulation": accumulation}
        tree = seq2seq_tree(root, max_steps=1, **split)
        tree["model"]["config"] = {**T5_CONFIG, "dropout_rate": 0.0}
        tree["output_dir"] = str(root / f"t5-{batch}")
        train(parse_recipe(tree))
        values.append(losses(Path(tree["output_dir"]))[0][1])
    assert values == pytest.approx([values[0]] * 3, abs=LOSS_TOLERANCE)
