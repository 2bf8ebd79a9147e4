# python recipes/measure_families.py recipes/checkpoints/tiny-bloom recipes/checkpoints/tiny-t5
"""Zero-shot extension of checkpoints: a Markdown table of what every method does to the loss.

The same last 64 tokens of 50 held-out windows, read with 256, 512, 1024 and 2048 tokens in all; no
training. Differences are to the unpatched model at the same length, paired by window; at the trained
length they are the price that short contexts pay.
"""

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ropepatch import list_methods, make_method, patched
from ropepatch.adapters.pretrained import pretrained_model, trained_length
from ropepatch.checkpoint.opening import open_model, open_tokenizer
from ropepatch.corpus import load_documents
from ropepatch.errors import ConfigError, MethodOptionError
from ropepatch.evals import bootstrap_mean, paired_difference
from ropepatch.evals.losses import batched_losses, plain_head
from ropepatch.evals.statistics import Floats
from ropepatch.evals.windows import Windows, held_out_windows
from ropepatch.evals.wording import show_interval
from ropepatch.terminal import ShareProgress, silence_transformers

MULTIPLES = (1, 2, 4, 8)  #: of the trained length: what is measured, and the factors but for 1
TARGETS = 64


@dataclass(frozen=True)
class Stage:
    """A model as it is patched while it is measured."""

    label: str
    patch: dict[str, Any] | None = None  #: arguments of patch_model


def main() -> None:
    """Print one section for every checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data", default="stdlib", help="text to measure on (stdlib)")
    parser.add_argument("--windows", type=int, default=50, help="(50)")
    options = parser.parse_args()
    silence_transformers()
    for checkpoint in options.checkpoints:
        print(measure(checkpoint, options.data, options.windows), flush=True)


def measure(checkpoint: str, data: str, count: int) -> str:
    """The section of one checkpoint, in Markdown."""
    model = pretrained_model(open_model(checkpoint, torch.float32)).eval()
    if (trained := trained_length(model)) is None:
        raise ConfigError(f"the config of {checkpoint} does not say how long it was trained")
    lengths = [trained * multiple for multiple in MULTIPLES]
    windows = held_out_windows(
        load_documents(data, "held_out"),
        open_tokenizer(checkpoint),
        longest=lengths[-1],
        count=count,
        targets=TARGETS,
    )
    stages, skipped = stages_of(model)
    means: dict[str, dict[int, Floats]] = {}
    with ShareProgress(checkpoint) as progress:
        for number, stage in enumerate(stages):
            means[stage.label] = target_means(model, stage, windows, lengths)
            progress((number + 1) / len(stages))
    title = f"{Path(checkpoint).name}, trained to {trained} tokens"
    return "\n".join([f"### {title}\n", *table(means, windows, lengths), "", *skipped, ""])


def stages_of(model: PreTrainedModel) -> tuple[list[Stage], list[str]]:
    """Unpatched and with every method that scales the model; a line for each that is left out."""
    stages, skipped = [Stage("unpatched")], []
    for name in list_methods(model, replacing=False):
        try:
            stages += method_stages(name, model.config.is_encoder_decoder)
        except MethodOptionError as error:
            skipped.append(f"- `{name}` is left out: {error}")
    return stages, skipped


def method_stages(name: str, encoder_decoder: bool) -> Iterator[Stage]:
    """One method at each factor, and for each part of the model."""
    factors = MULTIPLES[-1:] if make_method(name, factor=2.0).length_dependent else MULTIPLES[1:]
    for part in ("both", "encoder", "decoder") if encoder_decoder else (None,):
        for factor in factors:
            only = "" if part in (None, "both") else f", {part} only"
            options = {} if part is None else {"part": part}
            yield Stage(f"{name} ×{factor}{only}", {"method": name, "factor": factor, **options})


@torch.no_grad()
def target_means(
    model: PreTrainedModel, stage: Stage, windows: Windows, lengths: list[int]
) -> dict[int, Floats]:
    """By length, the mean loss of the targets of each window, (windows,)."""
    with patched(model, **stage.patch) if stage.patch else nullcontext():
        head = plain_head(model)
        losses = {
            length: batched_losses(model, windows.suffix(length), keep=TARGETS, head=head)
            for length in lengths
        }
    return {length: found.numpy().mean(axis=1, dtype="float64") for length, found in losses.items()}


def table(
    means: dict[str, dict[int, Floats]], windows: Windows, lengths: list[int]
) -> Iterator[str]:
    """Loss, and below it the difference to the unpatched model, each with its 95 % interval."""
    yield f"| loss of the same last {TARGETS} tokens, nats | {' | '.join(map(str, lengths))} |"
    yield "|---" * (1 + len(lengths)) + "|"
    unpatched = means["unpatched"]
    for label, by_length in means.items():
        cells = []
        for length in lengths:
            cell = show_interval(bootstrap_mean(by_length[length], windows.documents))
            if by_length is not unpatched:
                pair = unpatched[length], by_length[length]
                difference = paired_difference(*pair, windows.documents)
                cell += f"<br>{show_interval(difference, signed=True)}"
            cells.append(cell)
        yield f"| {label} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
