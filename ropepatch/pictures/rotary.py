"""Rotary positions: angles, wavelengths, how far scores reach, and why positions are interpolated."""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.typing import LineStyleType
from torch import Tensor

from ropepatch.interpolation import (
    extrapolation_bound,
    fit_scores,
    interpolation_bound,
    scores,
)
from ropepatch.pictures.look import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    ORANGE,
    PINK,
    RED,
    SHADE,
    label,
    logarithmic,
    mark_lengths,
    tokens_axis,
)
from ropepatch.portraits import TREATMENTS, RotaryPortrait
from ropepatch.positions import decay_bound

ROTARY_SIZE = (15.0, 8.8)  #: inches
_POINTS = 1200
_ZOOMED = 12  #: whole positions between which a fit is looked at

#: Colour and marker of what a method makes of a pair.
_MARKS = dict(
    zip(
        TREATMENTS,
        ((PINK, "^"), (INK, "o"), (ORANGE, "D"), (BLUE, "s"), (RED, "v"), (GREEN, "X")),
        strict=True,
    )
)


def draw_rotary(figure: SubFigure, portrait: RotaryPortrait) -> None:
    """Five panels."""
    grid = figure.add_gridspec(2, 6)
    _angles(figure.add_subplot(grid[0, :2]), portrait)
    _wavelengths(figure.add_subplot(grid[0, 2:4]), portrait)
    _decay(figure.add_subplot(grid[0, 4:]), portrait)
    coefficients = fit_scores(portrait.geometry.inv_freq, portrait.length)
    _fit(figure.add_subplot(grid[1, :4]), portrait, coefficients)
    _between(figure.add_subplot(grid[1, 4:]), portrait, coefficients)


def _angles(axes: Axes, portrait: RotaryPortrait) -> None:
    """Angles at a few positions, over those that training met."""
    theta = portrait.geometry.inv_freq
    pairs = torch.arange(len(theta))
    label(axes, "Angle at a position", "pair, from fast to slow", "angle, radians")
    axes.set_yscale("log")
    axes.set_ylim(portrait.length * float(theta[-1]) / 30, 3 * portrait.target * float(theta[0]))
    _shade(axes, portrait)
    axes.axhline(2 * math.pi, color=INK, linewidth=0.8, linestyle=DASHES[2])
    axes.text(0, 2 * math.pi * 0.9, "one turn", va="top", fontsize=8)
    for name, (angles, colour, dashes) in _angle_lines(portrait).items():
        # What stands still has no place on a logarithmic scale.
        drawn = angles.where(angles > 0, math.nan)
        axes.plot(pairs, drawn, color=colour, linestyle=dashes, label=name)
    outside = portrait.leaves_range
    if outside.any():
        angles = portrait.target * portrait.inv_freq
        axes.plot(pairs[outside], angles[outside], "x", color=RED, label="never met in training")
    axes.legend(loc="upper right")


def _angle_lines(portrait: RotaryPortrait) -> dict[str, tuple[Tensor, str, LineStyleType]]:
    """Angles of all pairs with colour and dashes, by what is said of them."""
    length, target, theta = portrait.length, portrait.target, portrait.geometry.inv_freq
    trained: tuple[Tensor, str, LineStyleType] = (length * theta, INK, "solid")
    if target == length:
        quarter, sixteenth = (-(-length // share) for share in (4, 16))
        return {
            f"{length:,}, as trained": trained,
            f"{quarter:,}": (quarter * theta, BLUE, DASHES[1]),
            f"{sixteenth:,}": (sixteenth * theta, ORANGE, DASHES[2]),
        }
    name = portrait.method.partition(",")[0]
    return {
        f"{length:,}, as trained": trained,
        f"{target:,}, unscaled": (target * theta, ORANGE, DASHES[1]),
        f"{target:,}, {name}": (target * portrait.inv_freq, BLUE, DASHES[3]),
    }


def _shade(axes: Axes, portrait: RotaryPortrait) -> None:
    """What training met: all angles of pairs that went full circle, of others those up to its end."""
    geometry, (bottom, top) = portrait.geometry, axes.get_ylim()
    last = geometry.dim // 2 - 1
    edge = min(max(int((portrait.turns >= 1).sum()) - 0.5, 0.0), last)
    reached = [
        portrait.length * geometry.base ** (-2 * pair / geometry.dim) for pair in (edge, last)
    ]
    axes.fill_between(
        [0, edge, edge, last],
        bottom,
        [top, top, *reached],
        color=SHADE,
        alpha=0.25,
        linewidth=0,
        label="met in training",
    )


def _wavelengths(axes: Axes, portrait: RotaryPortrait) -> None:
    theta = portrait.geometry.inv_freq
    pairs = torch.arange(len(theta))
    treatments = portrait.treatments
    label(axes, "Wavelength of a pair", "pair, from fast to slow", "tokens for a full turn")
    axes.set_yscale("log")
    axes.plot(pairs, 2 * math.pi / theta, color=INK, linewidth=0.8, label="as trained")
    for treatment, (colour, marker) in _MARKS.items():
        chosen = torch.tensor([each == treatment for each in treatments])
        if not chosen.any():
            continue
        values, where = 2 * math.pi / portrait.inv_freq[chosen], axes.transData
        if treatment == "stopped":  # an endless wavelength, along the upper edge
            values, where = torch.full_like(values, 0.97), axes.get_xaxis_transform()
        axes.plot(
            pairs[chosen],
            values,
            marker,
            color=colour,
            markersize=4,
            transform=where,
            label=f"{treatment} ({int(chosen.sum())})",
        )
    for tokens, name in {portrait.target: "target", portrait.length: "trained length"}.items():
        axes.axhline(tokens, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(
            1,
            tokens,
            f"{name} ",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8,
        )
    axes.legend(loc="upper left")


def _decay(axes: Axes, portrait: RotaryPortrait) -> None:
    distances = logarithmic(portrait.target)
    before = decay_bound(portrait.geometry.inv_freq, distances)
    label(axes, "Long-term decay: bound on scores", "distance, tokens", "mean of |partial sums|")
    axes.plot(distances, before, color=ORANGE, linewidth=1, linestyle=DASHES[2], label="as trained")
    after = portrait.decay_bound(distances)
    if not torch.allclose(before, after):
        axes.plot(distances, after, color=BLUE, linewidth=0.8, label=portrait.method)
    tokens_axis(axes, 0, portrait.target)
    axes.set_ylim(0)
    mark_lengths(axes, portrait.length, portrait.target)
    axes.legend(loc="lower left")


def _fit(axes: Axes, portrait: RotaryPortrait, coefficients: Tensor) -> None:
    """Scores fitted to random ones within the trained length, and as far again."""
    theta, length = portrait.geometry.inv_freq, portrait.length
    distances = torch.linspace(0, 2 * length, 2 * _POINTS, dtype=torch.float64).round().unique()
    sizes = scores(coefficients, theta, distances).abs()
    bound = extrapolation_bound(coefficients, theta, distances)
    middle = torch.tensor([0.5], dtype=torch.float64)
    error = interpolation_bound(coefficients, theta, middle).item()
    within = distances < length
    label(axes, "Random scores, fitted within the trained length", "distance, tokens", "|score|")
    axes.plot(distances[within], sizes[within], color=BLUE, linewidth=0.8, label="fitted")
    axes.plot(distances[~within], sizes[~within], color=RED, label="extrapolated")
    axes.plot(
        distances, bound, color=INK, linewidth=0.8, linestyle=DASHES[2], label="bound on |score|"
    )
    axes.hlines(
        error,
        0,
        length,
        color=GREEN,
        linestyle=DASHES[3],
        label="bound on |score − straight line|",
    )
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 3000 * float(bound.max()))  # room for the legend
    mark_lengths(axes, length, length)
    axes.legend(loc="upper right", ncols=2)


def _between(axes: Axes, portrait: RotaryPortrait, coefficients: Tensor) -> None:
    """The same fit between whole distances: where interpolated positions are."""
    theta, first = portrait.geometry.inv_freq, portrait.length // 2
    last = min(first + _ZOOMED, portrait.length - 1)
    whole = torch.arange(first, last + 1, dtype=torch.float64)
    fine = torch.linspace(first, last, 20 * _ZOOMED + 1, dtype=torch.float64)
    label(axes, "The same between whole distances", "distance, tokens", "score")
    found = scores(coefficients, theta, whole)
    axes.plot(fine, scores(coefficients, theta, fine), color=BLUE, label="interpolated")
    axes.plot(whole, found, color=ORANGE, linestyle=DASHES[2], label="straight line")
    axes.plot(whole, found, "o", color=INK, markersize=4, label="fitted distances")
    axes.legend(loc="best")
