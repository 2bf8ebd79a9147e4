# python recipes/extrapolation.py
"""Train short, test long: thirteen encodings, trained at 128 tokens, tested up to 4096.

Trains what recipes/train-short-test-long has and is not trained yet, and measures every model on the
same 50 held-out windows of 4096 tokens, in two ways. By the last 64 tokens of each window, with as many
tokens before them as fit into a length: last-s of `ropepatch.evals.protocols` with S = 64. And disjoint:
windows cut into blocks of a length, of which every token is scored, the early ones with little context.
Prints a Markdown table with paired 95 % intervals over documents, and draws a picture.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ropepatch.checkpoint.opening import open_model, open_tokenizer
from ropepatch.corpus import load_documents
from ropepatch.errors import LengthError
from ropepatch.evals import bootstrap_mean, paired_difference
from ropepatch.evals.losses import batched_losses, bin_edges, check_vocabulary, plain_head
from ropepatch.evals.windows import Windows, held_out_windows
from ropepatch.evals.wording import MISSING, show_interval
from ropepatch.pictures.look import BLUE, DASHES, GREEN, INK, MARKERS, ORANGE, PINK, RED, label
from ropepatch.terminal import silence_transformers
from ropepatch.training.recipe import load_recipe
from ropepatch.training.runner import train

HERE = Path(__file__).resolve().parent
RECIPES = HERE / "train-short-test-long"
TRAINED = 128
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
TARGETS, WINDOWS = 64, 50
EDGES = bin_edges(LENGTHS)
HIGHEST = 6.0  #: nats, of the picture; no model does worse within 128 tokens

#: By the name of a recipe, its colour: one for each family.
MODELS = {
    "sinusoidal": RED,
    "scaled-sinusoidal": RED,
    "learned": RED,
    "rotary": BLUE,
    "xpos": BLUE,
    "t5-bias": GREEN,
    "kerple-log": GREEN,
    "kerple-power": GREEN,
    "alibi": ORANGE,
    "alibi-trainable": ORANGE,
    "alibi-random": ORANGE,
    "sandwich": PINK,
    "none": INK,
}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Mean losses of each window (windows,), in nats; a length that a model cannot read is absent."""

    targets: dict[int, Floats]  #: by length, of the last tokens of a window
    blocks: dict[int, Floats]  #: by length, of all tokens in blocks
    positions: Floats  #: (windows, tokens) of each token of the longest window
    documents: NDArray[np.int64]  #: (windows,)


def main() -> None:
    """Train and measure what has not been, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/train-short-test-long"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    silence_transformers()
    scores = {}
    for name in MODELS:
        print(name, flush=True)
        scores[name] = scores_of(name, options.output / name, options.threads)
    print("\n" + table(scores))
    draw(scores, options.output / "extrapolation.png")


def scores_of(name: str, directory: Path, threads: int) -> Scores:
    """The scores of a model, trained and measured now if they are not there."""
    path = directory / "extrapolation.npz"
    if not path.exists():
        recipe = load_recipe(RECIPES / f"{name}.yaml", (f"output_dir={directory}",))
        final = str(train(recipe).directory)
        torch.set_num_threads(threads)
        windows = held_out_windows(
            load_documents("stdlib", "held_out"),
            open_tokenizer(final),
            longest=LENGTHS[-1],
            count=WINDOWS,
            targets=TARGETS,
        )
        np.savez(path, **measure(open_model(final).eval(), windows))  # type: ignore[arg-type]
    return read(np.load(path))


def measure(model: PreTrainedModel, windows: Windows) -> dict[str, NDArray[np.generic]]:
    """What `read` reads, up to the longest length that the model can."""
    check_vocabulary(model, windows.input_ids)
    head = plain_head(model)
    rows = len(windows.documents)
    found: dict[str, NDArray[np.generic]] = {"documents": windows.documents}
    for length in LENGTHS:
        try:
            losses = batched_losses(model, windows.input_ids.reshape(-1, length), head=head)
        except LengthError:  # a table of positions ends here
            break
        # The last block of a window ends with the targets; the longest block is the whole window.
        blocks = losses.double().reshape(rows, -1, length - 1)
        found[f"targets_{length}"] = blocks[:, -1, -TARGETS:].mean(1).numpy()
        found[f"blocks_{length}"] = blocks.mean((1, 2)).numpy()
        found["positions"] = blocks[:, 0].numpy()
    return found


def read(file: Mapping[str, Any]) -> Scores:
    """The scores in a file."""
    lengths = [length for length in LENGTHS if f"targets_{length}" in file]
    return Scores(
        {length: file[f"targets_{length}"] for length in lengths},
        {length: file[f"blocks_{length}"] for length in lengths},
        file["positions"],
        file["documents"],
    )


def table(scores: Mapping[str, Scores]) -> str:
    """A row for each model: at 128 tokens its loss, at longer ones the change."""
    changes = LENGTHS[1:]
    heads = [f"last {TARGETS} tokens of {TRAINED}", *(f"of {n}" for n in changes)]
    heads += [f"blocks of {TRAINED}", f"of {LENGTHS[-1]}"]
    rows = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, found in scores.items():
        cells = [loss(found.targets, found)]
        cells += [change(found.targets, length, found) for length in changes]
        cells += [loss(found.blocks, found), change(found.blocks, LENGTHS[-1], found)]
        rows.append(f"| {name.replace('-', ' ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def loss(by_length: Mapping[int, Floats], found: Scores) -> str:
    """At the trained length."""
    return show_interval(bootstrap_mean(by_length[TRAINED], found.documents))


def change(by_length: Mapping[int, Floats], length: int, found: Scores) -> str:
    """From the trained length to a longer one, paired by window."""
    if length not in by_length:
        return MISSING
    pair = paired_difference(by_length[TRAINED], by_length[length], found.documents)
    return show_interval(pair, digits=2, signed=True)


def draw(scores: Mapping[str, Scores], path: Path) -> None:
    """Three panels, of the same colour and mark for a model in each."""
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.3, "font.size": 9.5}):
        figure = Figure(figsize=(15, 6), layout="constrained", dpi=100)
        first, second, third = figure.subplots(1, 3, sharey=True)
        context = "tokens that are read"
        label(first, f"The same last {TARGETS} tokens, more before them", context, "nats per token")
        label(second, "Disjoint blocks, every token scored", context, "")
        label(third, f"By position in {LENGTHS[-1]} tokens", "position", "")
        for number, (name, color) in enumerate(MODELS.items()):
            found = scores[name]
            style = {
                "color": color,
                "linestyle": DASHES[number % len(DASHES)],
                "marker": MARKERS[number % len(MARKERS)],
                "markersize": 5,
                "label": name.replace("-", " "),
            }
            for axes, by_length in ((first, found.targets), (second, found.blocks)):
                axes.plot([*by_length], [row.mean() for row in by_length.values()], **style)
            third.plot(*by_position(found.positions), **style)
        for axes in (first, second, third):
            frame(axes)
        figure.legend(*first.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path)


def by_position(losses: Floats) -> tuple[Sequence[float], Sequence[float]]:
    """Of every position bin, its middle on a logarithmic scale and its mean loss."""
    bins = [(start, end) for start, end in pairwise(EDGES) if end - 1 <= losses.shape[1]]
    middles = [(start * end) ** 0.5 for start, end in bins]
    return middles, [float(losses[:, start - 1 : end - 1].mean()) for start, end in bins]


def frame(axes: Axes) -> None:
    """Lengths by powers of two, and a line where training ended."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    axes.set_ylim(top=HIGHEST)
    axes.axvline(TRAINED, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))


if __name__ == "__main__":
    main()
