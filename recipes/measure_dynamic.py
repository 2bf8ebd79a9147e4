# python recipes/measure_dynamic.py recipes/checkpoints/tiny-llama recipes/checkpoints/tiny-neox
"""Length-dependent methods in one forward pass and in a decoding loop: a Markdown table.

The loop reads 160 tokens, then 32 at a time, and keeps its cache; transformers' own `dynamic` is read
in both ways, too. Loss of the same last 64 tokens of 50 held-out windows, and, where the checkpoint
is trained for it, retrieval by forced choice (chance 0.125). Below each loss the difference to the
unpatched model at the same length, of a loop to the forward pass of the same method, paired by window.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ropepatch import patch_model, planned_length
from ropepatch.checkpoint.opening import open_tokenizer
from ropepatch.corpus import load_documents
from ropepatch.evals import bootstrap_mean, paired_difference
from ropepatch.evals.likelihoods import log_likelihoods
from ropepatch.evals.losses import batched_losses
from ropepatch.evals.statistics import Floats
from ropepatch.evals.tasks import Place, Prompt, Source, task
from ropepatch.evals.windows import Windows, held_out_windows
from ropepatch.evals.wording import show_interval
from ropepatch.terminal import ShareProgress, silence_transformers

TRAINED = 256
LENGTHS = (256, 512, 1024, 2048)
TARGETS = 64
START, STEP = 160, 32  # tokens of the loop's first call, and of every other


@dataclass(frozen=True)
class Stage:
    """A model and the way in which it reads."""

    label: str
    load: Callable[[str], PreTrainedModel]
    loops: bool = False
    plans: bool = False  #: says beforehand how long the loop gets


class Loop:
    """A model that reads in pieces and keeps its cache, called like one that reads all at once."""

    def __init__(self, model: PreTrainedModel, plans: bool) -> None:
        self.model, self.plans = model, plans
        self.config, self.device = model.config, model.device

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Logits of all tokens."""
        length = input_ids.shape[1]
        borders = [0, *range(START, length, STEP), length]
        cache, logits = None, []
        with planned_length(self.model, length) if self.plans else nullcontext():
            for start, end in pairwise(borders):
                piece = input_ids[:, start:end]
                answer = self.model(piece, past_key_values=cache, use_cache=True)
                cache = answer.past_key_values
                logits.append(answer.logits)
        return SimpleNamespace(logits=torch.cat(logits, 1))


def stock(checkpoint: str, **rope: Any) -> PreTrainedModel:
    """The checkpoint as transformers loads it, with these `rope_parameters`."""
    config = AutoConfig.from_pretrained(checkpoint)
    config.rope_parameters = {**config.rope_parameters, **rope}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    return model.eval()  # type: ignore[no-any-return]


def stages() -> list[Stage]:
    """Everything that is measured, the unpatched model first."""

    def patched(method: str) -> Callable[[str], PreTrainedModel]:
        return lambda checkpoint: patch_model(stock(checkpoint), method, LENGTHS[-1] / TRAINED)

    found = [Stage("unpatched", stock), Stage("yarn ×8", patched("yarn"))]
    for method in ("dynamic_yarn", "dynamic_ntk"):
        found += [
            Stage(f"{method}, forward", patched(method)),
            Stage(f"{method}, loop", patched(method), loops=True),
            Stage(f"{method}, loop with planned_length", patched(method), loops=True, plans=True),
        ]

    def dynamic(checkpoint: str) -> PreTrainedModel:
        return stock(checkpoint, rope_type="dynamic", factor=1.0)  # a = 1, as dynamic_ntk has it

    return [
        *found,
        Stage("transformers' `dynamic`, forward", dynamic),
        Stage("transformers' `dynamic`, loop", dynamic, loops=True),
    ]


def main() -> None:
    """Print one section for every checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--windows", type=int, default=50, help="(50)")
    options = parser.parse_args()
    silence_transformers()
    for checkpoint in options.checkpoints:
        print(measure(checkpoint, options.windows), flush=True)


def measure(checkpoint: str, count: int) -> str:
    """The section of one checkpoint, in Markdown."""
    tokenizer = open_tokenizer(checkpoint)
    documents = load_documents("stdlib", "held_out")
    windows = held_out_windows(
        documents, tokenizer, longest=LENGTHS[-1], count=count, targets=TARGETS
    )
    source = Source(tokenizer, [each for each in documents if each.name in windows.names])
    rows = [
        f"| {Path(checkpoint).name} | {' | '.join(map(str, LENGTHS))} |",
        "|---" * (1 + len(LENGTHS)) + "|",
    ]
    unpatched: dict[int, Floats] = {}
    forward: dict[int, Floats] = {}
    with ShareProgress(checkpoint) as progress:
        every = stages()
        for number, stage in enumerate(every):
            model = stage.load(checkpoint)
            reads: Any = Loop(model, stage.plans) if stage.loops else model
            means = target_means(reads, windows)
            unpatched = unpatched or means
            cells = []
            for length in LENGTHS:
                cell = show_interval(bootstrap_mean(means[length], windows.documents))
                if means is not unpatched:
                    before = (forward if stage.loops else unpatched)[length]
                    pair = paired_difference(before, means[length], windows.documents)
                    cell += f"<br>{show_interval(pair, signed=True)}"
                prompts = [task("kv").prompt(source, Place(length, n, 0)) for n in range(count)]
                right = sum(is_right(reads, prompt) for prompt in prompts)
                cells.append(f"{cell}<br>{right / count:.2f}")
            forward = forward if stage.loops else means
            rows.append(f"| {stage.label} | {' | '.join(cells)} |")
            progress((number + 1) / len(every))
    return "\n".join(rows)


def is_right(model: Any, prompt: Prompt) -> bool:
    """Whether the right value is the most likely one of those in the prompt."""
    choices = torch.stack(prompt.candidates)[None]
    with torch.no_grad():
        likelihoods = log_likelihoods(model, prompt.input_ids[None], choices)[0]
    return bool(likelihoods[0] > likelihoods[1:].max())


def target_means(model: Any, windows: Windows) -> dict[int, Floats]:
    """By length, the mean loss of the targets of each window, (windows,)."""
    losses = {
        length: batched_losses(model, windows.suffix(length), keep=TARGETS, head=None)
        for length in LENGTHS
    }
    return {length: found.numpy().mean(axis=1, dtype="float64") for length, found in losses.items()}


if __name__ == "__main__":
    main()
