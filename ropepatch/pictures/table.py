"""Vectors by position: a heat map, and a few of its channels as curves."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from ropepatch.pictures.look import BLUE, DASHES, GREEN, INK, ORANGE, label, spread
from ropepatch.portraits import TablePortrait

TABLE_SIZE = (14.0, 5.0)  #: inches
_POSITIONS = 256  #: first ones, as waves of few tokens are not seen in more
_CURVES = ((INK, 0), (BLUE, 1), (ORANGE, 2), (GREEN, 3))


def draw_table(figure: SubFigure, portrait: TablePortrait) -> None:
    """Two panels."""
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _heat_map(figure, left, portrait)
    _channels(right, portrait)


def _heat_map(figure: SubFigure, axes: Axes, portrait: TablePortrait) -> None:
    shown = min(_POSITIONS, portrait.target)
    vectors = portrait.vectors(torch.arange(shown))
    largest = float(vectors.abs().max())
    label(axes, f"Vectors of the first {shown} positions", "channel", "position, tokens")
    axes.grid(visible=False)
    image = axes.imshow(
        vectors.numpy(),
        aspect="auto",
        cmap="PuOr",
        vmin=-largest,
        vmax=largest,
        interpolation="nearest",
        extent=(-0.5, portrait.dim - 0.5, shown - 0.5, -0.5),
    )
    figure.colorbar(image, ax=axes, label="value added to the embedding")


def _channels(axes: Axes, portrait: TablePortrait) -> None:
    """Some channels, as far as the vectors are to be used."""
    positions = torch.arange(min(_POSITIONS, portrait.target))
    vectors = portrait.vectors(positions)
    label(axes, "Some channels", "position, tokens", "value added to the embedding")
    channels = spread(portrait.dim // 2, len(_CURVES))
    for (colour, dashes), pair in zip(_CURVES, channels, strict=False):
        axes.plot(
            positions,
            vectors[:, 2 * pair],
            color=colour,
            linestyle=DASHES[dashes],
            linewidth=1,
            label=str(2 * pair),
        )
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(_CURVES), frameon=False)
