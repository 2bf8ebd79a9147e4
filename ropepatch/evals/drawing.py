"""Matplotlib's figures as inline SVG that follows the page: its colours, its font, light or dark.

Figures are drawn with placeholder colours, which are then replaced by CSS variables.
"""

import html
import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#010203"
_GRID = "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05")
LEVELS = tuple(f"#0c0d0{level}" for level in range(7))  #: of a heat map, from weak to strong
INKS = tuple(f"#0e0f0{level}" for level in range(7))  #: text upon them

_VARIABLES = {
    INK: "ink",
    _GRID: "grid",
    **{colour: f"series-{number}" for number, colour in enumerate(SERIES)},
    **{colour: f"level-{number}" for number, colour in enumerate(LEVELS)},
    **{colour: f"on-level-{number}" for number, colour in enumerate(INKS)},
}


@dataclass(frozen=True)
class Panel:
    """One drawing of a chart; `name` is said above it where there are several."""

    name: str
    svg: str


@dataclass(frozen=True)
class Chart:
    """One figure of the report."""

    title: str
    caption: str
    panels: tuple[Panel, ...]


def style(salt: str) -> AbstractContextManager[None]:
    """Settings of a figure; figures of one page need different salts."""
    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": salt,  # ids are unique on the page and equal from run to run
            "font.family": "sans-serif",
            "font.size": 11,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": _GRID,
            "hatch.color": _GRID,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )


def as_svg(figure: Figure) -> str:
    """The document that Matplotlib writes, the same for the same figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def inline(svg: str, label: str, *, role: str = "img") -> str:
    """The <svg> element alone: no fixed size, no metadata, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) xmlns="[^"]*"', r"\1", svg)
    svg = re.sub(r' xmlns:xlink="[^"]*"| width="[\d.]+pt"| height="[\d.]+pt"', "", svg)
    svg = re.sub(r"'DejaVu Sans',[^;\"]*sans-serif", "var(--font)", svg)
    # Matplotlib names its groups alike in every figure; a page may use an id once.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    opening = f'<svg role="{role}" aria-label="{html.escape(label)}"'
    return svg.replace("<svg", opening, 1)
