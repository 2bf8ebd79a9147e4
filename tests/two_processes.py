"""What tests run on two processes: `torchrun … two_processes.py CASES.yaml REPORT.json`.

Recipes by name, one after the other in one launch, as starting one takes seconds: `lora` is stopped
and goes on, `absurd.yaml` is run by commands, and `broken` comes last, as its second process fails.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from ropepatch import cli
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import TrainingInterrupted, train


class Watch(TrainerCallback):
    """Notes what a run is made of when it starts, and can stop it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        parameters = [*kwargs["model"].parameters()]
        sharded = [each for each in parameters if isinstance(each.data, DTensor)]
        self.seen |= {
            "sharded": len(sharded) == len(parameters),
            "share": sum(each.data.to_local().numel() for each in sharded)
            / sum(each.numel() for each in parameters),
            "batches": [batch["input_ids"].tolist() for batch in kwargs["train_dataloader"]][:2],
        }

    def on_step_end(self, args, state, control, **kwargs):
        if self.name == "lora" and state.global_step == 3:
            raise KeyboardInterrupt
        if self.name == "broken" and state.global_step == 3 and args.process_index == 1:
            raise OSError("process 1 has no disk")


def run_case(name: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Train one recipe; what this process saw of it."""
    watch, told = Watch(name), []
    recipe = parse_recipe(tree)
    try:
        train(recipe, told.append, [watch])
    except TrainingInterrupted:
        train(recipe)
    return {**watch.seen, "told": len(told)}


def run_command(path: Path, *options: str) -> int:
    """Train one recipe as a user would; the exit code of this process."""
    return cli.main(["train", str(path), *options])


def run_module(*arguments: str) -> int:
    """`python -m ropepatch` with these arguments; the exit code of this process."""
    before, sys.argv = sys.argv, ["ropepatch", *arguments]
    try:
        runpy.run_module("ropepatch", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def main() -> None:
    torch.set_num_threads(1)
    file = Path(sys.argv[1])
    cases = yaml.safe_load(file.read_text())
    absurd = file.with_name("absurd.yaml")
    # First, as a command joins the processes itself.
    codes = [run_module("train", str(absurd), "training.max_stps=3")]
    broken = cases.pop("broken")
    report = {name: run_case(name, tree) for name, tree in cases.items()}
    missing = file.with_name("missing.yaml") if PartialState().process_index else absurd
    report["codes"] = [
        *codes,
        run_command(absurd),
        run_command(absurd, "--preview"),
        run_command(missing),
    ]
    Path(f"{sys.argv[2]}.{PartialState().process_index}").write_text(json.dumps(report))
    run_case("broken", broken)


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes of a script or module, with their output."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


if __name__ == "__main__":
    main()
