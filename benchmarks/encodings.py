"""python -m benchmarks.encodings: a training step of each model of recipes/train-short-test-long.

How to read what it prints: benchmarks/README.md.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.measure import ROOT, Worker, serve
from benchmarks.report import aligned, show_ratio
from ropepatch import patch_model
from ropepatch.terminal import silence_transformers
from ropepatch.training.models import patch_arguments
from ropepatch.training.recipe import Recipe, load_recipe

RECIPES = ROOT / "recipes" / "train-short-test-long"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
REFERENCE = "sinusoidal"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every model in a process of its own, and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encodings", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args(arguments).rounds
    print(
        "A training step of 64 sequences of 128 tokens: median CPU seconds, and peak megabytes above the "
        f"loaded\nmodel; one thread; [least, greatest] ratio of a round to {REFERENCE}\n"
    )
    memory: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker("benchmarks.encodings", f"--serve={name}"))
            for name in NAMES
        }
        for name, worker in workers.items():
            memory[name] = worker.run("memory")[1]
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(worker.run("time")[0])
    header = ("", "seconds", "time", "MB", "memory")
    rows = [
        (
            name,
            f"{statistics.median(times[name]):.2f}",
            show_ratio(times[name], times[REFERENCE]),
            f"{memory[name]:,.0f}",
            f"{memory[name] / memory[REFERENCE]:.2f}×",
        )
        for name in NAMES
    ]
    print(aligned([header, *rows]))


def work(name: str) -> None:
    """Serve training steps of one model: see benchmarks/measure.py."""
    silence_transformers()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    model = model_of(recipe)
    shape = (recipe.training.per_device_batch_size, recipe.data.length)
    ids = torch.randint(model.config.vocab_size, shape)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(ids: torch.Tensor = ids) -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(ids[:1])
    serve(step, answers=sys.stdout, row=3)


def model_of(recipe: Recipe) -> PreTrainedModel:
    """Random weights for the vocabulary that the recipe's tokenizer gets."""
    fields = dict(recipe.model.config or {})
    assert recipe.model.tokenizer is not None
    vocabulary = recipe.model.tokenizer.vocab_size
    config = AutoConfig.for_model(fields.pop("model_type"), vocab_size=vocabulary, **fields)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).train()
    if recipe.patch is not None:
        patch_model(model, **patch_arguments(recipe.patch))
    return model


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("--serve="):
        work(sys.argv[1].removeprefix("--serve="))
    else:
        main()
