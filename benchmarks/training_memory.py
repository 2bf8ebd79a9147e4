"""python -m benchmarks.training_memory: what `ropepatch train --dry-run` estimates, against what runs take.

How to read what it prints: benchmarks/README.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT, Worker, serve
from benchmarks.report import aligned
from ropepatch.terminal import silence_transformers
from ropepatch.training.memory import estimate_memory, longest_batch
from ropepatch.training.recipe import Recipe, parse_recipe
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.runner import prepare

Changes = dict[str, Any]  #: keys of a recipe with dots, and their values

LORA: Changes = {"lora": {"train_embeddings": True, "train_norms": True}}
CELLS: dict[str, Changes] = {
    "llama, LoRA": LORA,
    "llama, LoRA, bf16": {**LORA, "training.precision": "bf16"},
    "llama, LoRA, chunked_loss": {**LORA, "training.chunked_loss": True},
    "llama, LoRA, gradient_checkpointing": {**LORA, "training.gradient_checkpointing": True},
    "llama, LoRA, all three": {
        **LORA,
        "training.precision": "bf16",
        "training.chunked_loss": True,
        "training.gradient_checkpointing": True,
    },
    "llama, LoRA, 3 × 1 sequences": {
        **LORA,
        "data.length": 1024,
        "training.per_device_batch_size": 1,
        "training.gradient_accumulation": 3,
    },
    "llama, full": {},
    "llama, full, 3 × 1 sequences": {
        "data.length": 1024,
        "training.per_device_batch_size": 1,
        "training.gradient_accumulation": 3,
    },
    "llama, full, bfloat16 weights": {"model.dtype": "bfloat16"},
    "neox, LoRA": {"model.path": "tiny-neox", "lora": {}},
    "bloom, LoRA": {"model.path": "tiny-bloom", "patch.method": "linear", "lora": {}},
    "t5, full": {
        "model.path": "tiny-t5",
        "patch": {"method": "log", "factor": 16, "original_max_position_embeddings": 256},
        "data.target_length": 256,
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a short run of every cell in a process of its own, and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_memory")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=[*CELLS])
    print("Megabytes that a run takes above a process that has finished another; one thread\n")
    silence_transformers()
    rows = [("run", "estimate", "measured", "estimate/measured")]
    for cell in parser.parse_args(arguments).cells:
        estimated, measured = compare(CELLS[cell])
        print(f"{cell}: {estimated:.0f} of {measured:.0f}", file=sys.stderr)
        ratio = f"{estimated / measured:.2f}"
        rows.append((cell, f"{estimated:,.0f}", f"{measured:,.0f}", ratio))
    print(aligned(rows))


def compare(changes: Changes) -> tuple[float, float]:
    """Megabytes that are estimated for a run, and that it takes."""
    with tempfile.TemporaryDirectory() as directory:
        recipe = recipe_of(changes, Path(directory))
        trainer = prepare(RunDirectory(recipe), weights=False)
        estimated = estimate_memory(trainer, longest_batch(trainer)).peak / 1e6
    with Worker("benchmarks.training_memory", f"--serve={json.dumps(changes)}") as worker:
        return estimated, worker.run("memory")[1]


def recipe_of(changes: Changes, directory: Path) -> Recipe:
    """A run of two steps of 4096 tokens that extends a bundled checkpoint 16 times."""
    text = directory / "text.txt"
    text.write_text((ROOT / "CHANGELOG.md").read_text(encoding="utf-8") * 4, encoding="utf-8")
    tree: dict[str, Any] = {
        "model": {"path": "tiny-llama"},
        "patch": {"method": "yarn", "factor": 16},
        "data": {"source": str(text), "length": 4096, "mixture": {"retrieval": 0.0}},
        "evaluation": None,
        "training": {"max_steps": 2, "learning_rate": 1e-4, "per_device_batch_size": 1},
        "output_dir": str(directory / "run"),
    }
    for dotted, value in changes.items():
        section, _, key = dotted.partition(".")
        if key:
            tree[section][key] = value
        else:
            tree[section] = value
    tree["model"]["path"] = str(ROOT / "recipes" / "checkpoints" / tree["model"]["path"])
    return parse_recipe(tree)


def work(changes: Changes) -> None:
    """Serve whole runs of one cell: see benchmarks/measure.py."""
    silence_transformers()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        recipe = recipe_of(changes, Path(directory))

        def run(recipe: Recipe = recipe) -> None:
            prepare(RunDirectory(recipe)).train()

        short = {"data.length": 64} | ({"data.target_length": 32} if "t5" in str(changes) else {})
        run(recipe_of(changes | short, Path(directory)))
        serve(run, answers=sys.stdout)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("--serve="):
        work(json.loads(sys.argv[1].removeprefix("--serve=")))
    else:
        main()
