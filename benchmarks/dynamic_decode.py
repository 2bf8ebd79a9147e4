"""python -m benchmarks.dynamic_decode: decoding with length-dependent methods against static YaRN.

How to read what it prints: benchmarks/README.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.report import aligned
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
    parser.add_argument("--rounds", type=int, default=7)
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
        for method in METHODS:
            times = one_round(models[method], length)
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
def one_round(model: PreTrainedModel, length: int) -> tuple[float, float, float]:
    """CPU seconds of a prefill, of a step within the bucket, and of the step that outgrows it."""
    ids = torch.arange(length + 1)[None] % model.config.vocab_size
    start = length - STEPS
    cache: Any = None

    def call(part: Tensor) -> None:
        nonlocal cache
        answer = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = answer.past_key_values

    prefill = timed(lambda: call(ids[:, :start]))
    steps = [timed(lambda at=at: call(ids[:, at : at + 1])) for at in range(start, length + 1)]  # type: ignore[misc]
    return prefill, statistics.median(steps[:-1]), steps[-1]


def timed(run: Callable[[], None]) -> float:
    """CPU seconds of this process."""
    started = time.process_time()
    run()
    return time.process_time() - started


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


def show_ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ratio of medians, and the least and greatest of a round."""
    each = [some / other for some, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return f"{ratio:.2f}× [{min(each):.2f}, {max(each):.2f}]"


if __name__ == "__main__":
    main()
