"""python -m benchmarks.loss_memory: the chunked loss against the one of transformers.

How to read what it prints: benchmarks/README.md.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.measure import Worker, serve
from benchmarks.report import aligned, show_ratio
from ropepatch.terminal import silence_transformers
from ropepatch.training.lm_loss import use_chunked_loss

LENGTH, VOCABULARY = 8192, 32000
VARIANTS = ("stock", "chunked", "no head")
DTYPES = ("float32", "bfloat16")
HEADS = ("trained", "frozen")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a training step of every variant and print one table for each dtype and head."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss_memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    options = parser.parse_args(arguments)
    print(
        f"A training step of {options.length} tokens, vocabulary {options.vocabulary}, hidden size "
        "128, 2 layers; CPU seconds, and\npeak megabytes above the loaded model; one thread; "
        "[least, greatest] ratio of a round\n"
    )
    header = ("dtype", "head", "loss", "seconds", "of stock", "MB", "less than stock")
    for dtype in DTYPES:
        for head in HEADS:
            rows = measured(dtype, head, options)
            print(aligned([header, *rows]), end="\n\n", flush=True)


def measured(dtype: str, head: str, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """One row for each variant; they take turns."""
    memory: dict[str, float] = {}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with ExitStack() as stack:
        workers = {
            variant: stack.enter_context(
                Worker(
                    "benchmarks.loss_memory",
                    f"--serve={variant},{dtype},{head},{options.length},{options.vocabulary}",
                )
            )
            for variant in VARIANTS
        }
        for variant, worker in workers.items():
            memory[variant] = worker.run("memory")[1]
        for _ in range(options.rounds):
            for variant, worker in workers.items():
                times[variant].append(worker.run("time")[0])
    return [
        (
            dtype,
            head,
            variant,
            f"{statistics.median(times[variant]):.2f}",
            show_ratio(times[variant], times["stock"]),
            f"{memory[variant]:,.0f}",
            f"{memory['stock'] / memory[variant]:.1f}×",
        )
        for variant in VARIANTS
    ]


def work(cell: str) -> None:
    """Serve training steps of one cell: see benchmarks/measure.py."""
    variant, dtype, head, length, vocabulary = cell.split(",")
    silence_transformers()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=int(vocabulary),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=int(length),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).train()
    model.lm_head.requires_grad_(head == "trained")
    if variant == "chunked":
        use_chunked_loss(model)
    ids = torch.randint(int(vocabulary), (1, int(length)))

    def step(ids: torch.Tensor = ids) -> None:
        model.zero_grad(set_to_none=True)
        if variant == "no head":
            model.model(ids)[0].float().square().mean().backward()
        else:
            model(input_ids=ids, labels=ids).loss.backward()

    step(ids[:, :64])
    model.zero_grad(set_to_none=True)
    serve(step, answers=sys.stdout)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("--serve="):
        work(sys.argv[1].removeprefix("--serve="))
    else:
        main()
