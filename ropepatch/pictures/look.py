"""Colours and marks that the pictures share; every series differs in mark or dashes, too."""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.typing import LineStyleType
from torch import Tensor

#: Okabe and Ito's colours, told apart by colour-blind readers too.
INK = "#000000"
BLUE = "#0072b2"
ORANGE = "#e69f00"
RED = "#d55e00"
GREEN = "#009e73"
SHADE = "#56b4e9"
PINK = "#cc79a7"

DASHES: tuple[LineStyleType, ...] = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Say what is drawn."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def mark_lengths(axes: Axes, length: int, target: int) -> None:
    """Vertical lines at the two lengths, named at their upper ends."""
    for tokens in sorted({length, target}):
        axes.axvline(tokens, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        name = "trained" if tokens == length else "target"
        where = axes.get_xaxis_transform()
        axes.text(
            tokens, 0.99, f"{name} ", transform=where, ha="right", va="top", rotation=90, fontsize=8
        )


def tokens_axis(axes: Axes, first: int, last: int) -> None:
    """Distances on a logarithmic scale, linear below 1, to both sides of 0 if `first` is negative."""
    step = -(-last.bit_length() // (3 if first < 0 else 7))
    powers = [2.0**exponent for exponent in range(0, last.bit_length(), step)]
    axes.set_xscale("symlog", linthresh=1, base=2)
    axes.set_xlim(1.15 * first, 1.15 * last)  # room for marks at the ends
    axes.set_xticks([*(-power for power in powers if first < 0), 0, *powers])
    axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}".replace("-", "−"))


def spread(count: int, most: int) -> Sequence[int]:
    """Up to `most` of `count` numbers, evenly from the first to the last."""
    if count <= most:
        return range(count)
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def logarithmic(farthest: int, points: int = 1000) -> Tensor:
    """Whole distances from 0, denser where they are short: that is how they are drawn. (n,)"""
    logarithms = torch.linspace(0, math.log(farthest), points, dtype=torch.float64)
    return torch.cat((torch.zeros(1, dtype=torch.float64), logarithms.exp().round().unique()))
