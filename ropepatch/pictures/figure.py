"""One figure of all portraits, and the file that it becomes."""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ropepatch.errors import CheckpointError, ConfigError
from ropepatch.pictures.bias import BIAS_SIZE, draw_bias
from ropepatch.pictures.rotary import ROTARY_SIZE, draw_rotary
from ropepatch.pictures.table import TABLE_SIZE, draw_table
from ropepatch.portraits import BiasPortrait, Portrait, RotaryPortrait, TablePortrait
from ropepatch.whole_files import write_whole

_SUFFIXES = (".png", ".svg", ".pdf")
_DPI = 100


def draw(portraits: Sequence[Portrait]) -> Figure:
    """A row of panels for each portrait."""
    sizes = [_size(portrait) for portrait in portraits]
    heights = [height for _, height in sizes]
    with _style():
        figure = Figure(
            figsize=(max(width for width, _ in sizes), sum(heights)),
            layout=ConstrainedLayoutEngine(w_pad=0.1),
            dpi=_DPI,
        )
        rows = figure.subfigures(len(portraits), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, portrait in zip(rows, portraits, strict=True):
            trained = f"trained to {portrait.length:,} tokens"
            target = f", for {portrait.target:,}" if portrait.target != portrait.length else ""
            part.suptitle(f"{portrait.title}: {trained}{target}", fontsize=12, fontweight="bold")
            if isinstance(portrait, RotaryPortrait):
                draw_rotary(part, portrait)
            elif isinstance(portrait, BiasPortrait):
                draw_bias(part, portrait)
            elif isinstance(portrait, TablePortrait):
                draw_table(part, portrait)
    return figure


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context(
        {
            "font.size": 9.5,
            "axes.titlesize": 10.5,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.alpha": 0.3,
            "legend.fontsize": 8.5,
            "legend.framealpha": 0.85,
            "svg.hashsalt": "ropepatch",  # ids that are equal from run to run
        }
    )


def _size(portrait: Portrait) -> tuple[float, float]:
    """Inches."""
    if isinstance(portrait, RotaryPortrait):
        return ROTARY_SIZE
    return BIAS_SIZE if isinstance(portrait, BiasPortrait) else TABLE_SIZE


def require_suffix(path: Path) -> None:
    """Raise ConfigError for a file of a kind that is not drawn."""
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--plot writes {', '.join(_SUFFIXES)}; found {str(path)!r}")


def save(figure: Figure, path: Path) -> None:
    """Write the picture, whole or as it was. Raises CheckpointError where the file cannot be written."""
    buffer = io.BytesIO()
    with _style():
        kind = path.suffix.lower()[1:]
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        figure.savefig(buffer, format=kind, metadata=metadata)
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"the picture cannot be written to {path} ({error.strerror}); name a file in a "
            "directory that is there and can be written"
        ) from error
