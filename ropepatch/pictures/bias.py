"""Biases on scores: by distance with the reach of every head, and as the matrices that they are."""

from collections.abc import Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from torch import Tensor

from ropepatch.pictures.look import (
    DASHES,
    INK,
    MARKERS,
    label,
    logarithmic,
    mark_lengths,
    spread,
    tokens_axis,
)
from ropepatch.portraits import FADED, FARTHEST, BiasPortrait

BIAS_SIZE = (14.5, 5.0)  #: inches
_HEADS = 8  #: that a reader can tell apart
_TOKENS = 256  #: of a matrix, and fewer if a model has fewer
_CELLS = 128  #: of its side
_LOWEST = 1.5 * FADED  #: below which no key counts
_ACROSS = 4  #: matrices


def draw_bias(figure: SubFigure, portrait: BiasPortrait) -> None:
    """Curves on the left, matrices on the right, of the same heads."""
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    heads = spread(portrait.num_heads, _HEADS)
    _curves(left.add_subplot(), portrait, heads)
    both = " back\n/ ahead" if portrait.bidirectional else ""
    left.legend(title=f"head: reach{both},\ntokens", loc="outside right center", handlelength=3)
    _matrices(right, portrait, heads)


def _curves(axes: Axes, portrait: BiasPortrait, heads: Sequence[int]) -> None:
    """Bias by distance; a mark where a head's reach ends, at the edge if it goes on."""
    reaches = [portrait.reach(way) for way in ((1, -1) if portrait.bidirectional else (1,))]
    reach = reaches[0]
    farthest = max(portrait.target, *(reach[head] or 0 for head in heads), 2)
    past = logarithmic(farthest)
    distances = torch.cat((-past.flip(0), past[1:])) if portrait.bidirectional else past
    biases = portrait.against_here(distances)
    label(
        axes,
        "Bias by distance",
        "distance from query back to key, tokens",
        "bias against distance 0, nats",
    )
    tokens_axis(axes, -farthest if portrait.bidirectional else 0, farthest)
    for number, head in enumerate(heads):
        tokens = reach[head] or farthest
        axes.plot(
            distances,
            biases[head],
            color=colormaps["viridis"](0.9 * number / max(len(heads) - 1, 1)),
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number],
            markevery=[int((distances - tokens).abs().argmin())],
            markersize=7,
            label=f"{head}: {' / '.join(_tokens(each[head]) for each in reaches)}",
        )
    low, high = (float(end) for end in biases[biases.isfinite()].aminmax())
    axes.set_ylim(max(_LOWEST, low - 0.5), high + 0.5)
    if low <= FADED:
        name = "1/1000 of\nthe weight"
        axes.axhline(FADED, color=INK, linewidth=0.8, linestyle=DASHES[2], label=name)
    mark_lengths(axes, portrait.length, portrait.target)


def _tokens(reach: int | None) -> str:
    return f"> {FARTHEST >> 20}M" if reach is None else f"{reach:,}"


def _matrices(figure: SubFigure, portrait: BiasPortrait, heads: Sequence[int]) -> None:
    """Bias of every query and key, with the reach as a line."""
    tokens = min(_TOKENS, portrait.target)
    positions = torch.linspace(0, tokens - 1, min(_CELLS, tokens), dtype=torch.float64).round()
    distances = positions[:, None] - positions
    biases = portrait.against_here(distances.flatten()).unflatten(-1, distances.shape)
    biases = biases.clamp(min=_LOWEST)  # a method may hide a direction by −inf
    if not portrait.bidirectional:
        biases = biases.masked_fill(distances < 0, torch.nan)
    across = min(_ACROSS, len(heads))
    grid = figure.subplots(
        -(-len(heads) // across), across, sharex=True, sharey=True, squeeze=False
    )
    figure.suptitle(f"Bias of the first {tokens} tokens", x=0.02, ha="left", fontsize=10.5)
    shown = biases[biases.isfinite()]
    norm = Normalize(max(FADED, float(shown.min())), float(shown.max()))
    panels = list(grid.flat[: len(heads)])
    for axes, head in zip(panels, heads, strict=True):
        image = _matrix(axes, biases[head], positions, norm)
        axes.set_title(f"head {head}")
    for axes in grid.flat[len(heads) :]:
        axes.remove()
    bar = figure.colorbar(
        image, ax=panels, extend="min" if norm.vmin == FADED else "neither", fraction=0.05
    )
    reaches = "; line: reach" if norm.vmin == FADED else ""
    bar.set_label(f"bias against distance 0, nats{reaches}")
    figure.supxlabel("key", fontsize=9.5)
    figure.supylabel("query", fontsize=9.5)


def _matrix(axes: Axes, biases: Tensor, positions: Tensor, norm: Normalize) -> AxesImage:
    end = float(positions[-1])
    image = axes.imshow(
        biases.numpy(),
        extent=(0, end, end, 0),
        cmap="cividis",
        norm=norm,
        interpolation="nearest",
        aspect="auto",
    )
    if (biases <= FADED).any():
        axes.contour(
            positions,
            positions,
            biases.numpy(),
            [FADED],
            colors="white",
            linewidths=1,
            linestyles="solid",
        )
    axes.grid(visible=False)
    return image
