"""python -m benchmarks.dynamic_decode: decoding with length-dependent methods against static YaRN.

How to read what it prints: benchmarks/README.md.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.report import aligned, show_ratio
from ropepatch import patch_model
from ropepatch.terminal import silence_transformers

TRAINED = 512  # tokens; every length that is measured is a bucket of its own
TARGET = 32768
# The first is what the others are compared to.
METHODS = ("yarn", "dynamic_yarn", "dynamic_ntk", "dynamic_linear")
STEPS = 24


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every length and print a row for it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dynamic_decode", description=__doc__
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=2 * len(METHODS))
    options = parser.parse_args(arguments)
    silence_transformers()
    torch.set_num_threads(1)
    print(
        f"CPU time, medians of {options.rounds} rounds; one thread; [least, greatest] ratio of a round"
    )
    header = ("tokens", "method", "decode ms", "ratio", "prefill s", "ratio", "next bucket")
    for length in options.lengths:
        print(aligned([header, *measured(length, options.rounds)]), end="\n\n", flush=True)


def measured(length: int, rounds: int) -> list[tuple[str, ...]]:
    """One row for each method: a step of decoding, a prefill, and the step into the next bucket."""
    models = {method: model(method) for method in METHODS}
    taken: dict[str, list[tuple[float, float, float]]] = {method: [] for method in METHODS}
    for turn in range(-1, rounds):  # the turn before the first warms up
        # Who comes first finds memory that the last round has freed.
        first = turn % len(METHODS)
        order = METHODS[first:] + METHODS[:first]
        for method, times in one_round({each: models[each] for each in order}, length).items():
            if turn >= 0:
                taken[method].append(times)
    rows = []
    for method in METHODS:
        prefill, decode, change = (
            statistics.median(column) for column in zip(*taken[method], strict=True)
        )
        ratios = [
            show_ratio(
                [one[kind] for one in taken[method]], [one[kind] for one in taken[METHODS[0]]]
            )
            for kind in (1, 0)
        ]
        extra = f"+{(change - decode) / prefill:.1%} of a prefill" if method != METHODS[0] else "–"
        rows.append(
            (
                f"{length:,}",
                method,
                f"{decode * 1e3:.2f}",
                ratios[0],
                f"{prefill:.3f}",
                ratios[1],
                extra,
            )
        )
    return rows


@torch.no_grad()
def one_round(
    models: dict[str, PreTrainedModel], length: int
) -> dict[str, tuple[float, float, float]]:
    """CPU seconds of a prefill, of a step within the bucket, and of the step that outgrows it.

    The models take turns at every step, so that a slow moment of the machine is one of them all.
    """
    ids = torch.arange(length + 1)[None] % next(iter(models.values())).config.vocab_size
    caches: dict[str, Any] = dict.fromkeys(models)
    taken: dict[str, list[float]] = {method: [] for method in models}
    for start, end in pairwise([0, *range(length - STEPS, length + 2)]):
        for method, each in models.items():
            started = time.process_time()
            answer = each(
                ids[:, start:end], past_key_values=caches[method], use_cache=True, logits_to_keep=1
            )
            taken[method].append(time.process_time() - started)
            caches[method] = answer.past_key_values
    return {
        method: (times[0], statistics.median(times[1:-1]), times[-1])
        for method, times in taken.items()
    }


def model(method: str) -> PreTrainedModel:
    """Hidden size 256, 4 layers, 8 heads, random weights, the same for every method."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=512,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=TRAINED,
    )
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return patch_model(made, method, target_length=TARGET)


if __name__ == "__main__":
    main()
