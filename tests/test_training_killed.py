"""Runs that the kernel kills, at moments that no handler can see, and what they come to."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import pretraining, pretraining_tree, with_evaluation

from ropepatch.cli import main
from ropepatch.training.runner import train

BOMB = """
import os, signal, sys
from pathlib import Path
import torch, transformers
import ropepatch.training.before_after as before_after
import ropepatch.training.command, ropepatch.training.runner
from ropepatch.cli import main

def killed_at(owner, name, when, leave=lambda *arguments: None):
    original = getattr(owner, name)
    def bomb(*arguments, **options):
        if when(*arguments):
            leave(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(owner, name, bomb)

def set_bomb(moment):
    match moment:
        case "in a step":
            killed_at(transformers.Trainer, "training_step",
                      lambda self, *_: self.state.global_step == 3)
        case "in a checkpoint":
            killed_at(torch, "save", lambda _, path: path.endswith("checkpoint-4/scheduler.pt"),
                      lambda _, path: Path(path).write_bytes(b"half"))
        case "in the result":
            killed_at(transformers.PreTrainedModel, "save_pretrained",
                      lambda _, path: "final" in str(path),
                      lambda _, path: Path(path, "model.safetensors").write_bytes(b"half"))
        case "in the evaluation":
            killed_at(before_after, "write_report", lambda *_: True)

recipe, *moments = sys.argv[1:]
for moment in moments:  # each in a process of its own, which finds everything imported
    child = os.fork()
    if child == 0:
        set_bomb(moment)
        os._exit(main(["train", recipe]))
    _, status = os.waitpid(child, 0)
    print(moment, os.waitstatus_to_exitcode(status), flush=True)
"""
MOMENTS = ("in a step", "in a checkpoint", "in the result", "in the evaluation")


def write_recipe(root: Path) -> Path:
    root.mkdir()
    # Threads, as sums in another order differ in their last bits.
    tree = with_evaluation(pretraining_tree(root, threads=1), root)
    (root / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return root / "recipe.yaml"


def kill(moments: Sequence[str], recipe: Path) -> None:
    """Train in one process after the other, each killed at its moment."""
    command = [sys.executable, "-c", BOMB, str(recipe), *moments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ends = [line for line in done.stdout.splitlines() if line.endswith(f" {-signal.SIGKILL:d}")]
    assert ends == [f"{moment} {-signal.SIGKILL:d}" for moment in moments], done.stderr


def result(root: Path) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]]]:
    """Weights, and the losses by step."""
    lines = map(json.loads, (root / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    return load_file(root / "run" / "final" / "model.safetensors"), losses


def test_a_run_killed_four_times_ends_as_an_undisturbed_one(tmp_path, capsys):
    (tmp_path / "undisturbed").mkdir()
    train(pretraining(tmp_path / "undisturbed", threads=1))
    recipe = write_recipe(tmp_path / "killed")
    kill(MOMENTS, recipe)
    checkpoints = sorted((tmp_path / "killed").glob("run/checkpoint-*/SHA256SUMS"))
    trained = [path.stat().st_mtime_ns for path in checkpoints]
    assert main(["train", str(recipe)]) == 0
    assert "trained" in capsys.readouterr().out
    # The last session only measured.
    assert [path.stat().st_mtime_ns for path in checkpoints] == trained
    weights, losses = result(tmp_path / "killed")
    expected, undisturbed = result(tmp_path / "undisturbed")
    assert losses == undisturbed
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []
    sessions = json.loads((tmp_path / "killed" / "run" / "environment.json").read_text())
    assert [session["first_step"] for session in sessions["sessions"]] == [0, 2, 2, 6]
    report = json.loads((tmp_path / "killed" / "run" / "evaluation" / "report.json").read_text())
    assert [stage["label"] for stage in report["stages"]] == ["trained"]
