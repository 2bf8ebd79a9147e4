"""The numbers of an encoding in the terminal."""

import math

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ropepatch.portraits import (
    FADED,
    FARTHEST,
    TREATMENTS,
    BiasPortrait,
    Portrait,
    RotaryPortrait,
    TablePortrait,
)
from ropepatch.terminal import print_rows

_NEAR = (1, 8, 64)  #: distances at which a bias is printed, besides the two lengths


def print_portrait(portrait: Portrait) -> None:
    """Geometry and lengths, then a line for each pair or head."""
    console = Console()
    console.print()
    console.print(Text(portrait.title, style="bold"))
    print_rows(describe_portrait(portrait))
    if isinstance(portrait, RotaryPortrait):
        console.print()
        console.print(_pairs(portrait))
    elif isinstance(portrait, BiasPortrait):
        console.print()
        console.print(_heads(portrait))


def describe_portrait(portrait: Portrait) -> dict[str, str]:
    """Heading and text of every row above the table."""
    rows = {"trained to": f"{portrait.length:,} tokens"}
    if portrait.target != portrait.length:
        rows["target"] = f"{portrait.target:,} tokens"
    if isinstance(portrait, RotaryPortrait):
        return rows | _rotary_rows(portrait)
    if isinstance(portrait, BiasPortrait):
        return rows | {
            "mechanism": f"bias on scores, {portrait.num_heads} heads; below, less that of distance 0",
            "reach": "tokens to the first distance at which the bias leaves a key 1/1000 of the weight "
            f"that it would have at distance 0 (bias ≤ {_number(FADED)})",
        }
    assert isinstance(portrait, TablePortrait)
    positions = sorted({0, portrait.length - 1, portrait.target - 1})
    norms = portrait.vectors(torch.tensor(positions)).norm(dim=-1).tolist()
    return rows | {
        "mechanism": f"vectors added to the embeddings, {portrait.dim} channels",
        "norms": ", ".join(
            f"{norm:.3g} at position {position:,}"
            for position, norm in zip(positions, norms, strict=True)
        ),
    }


def _rotary_rows(portrait: RotaryPortrait) -> dict[str, str]:
    geometry, found = portrait.geometry, portrait.treatments
    counts = [(found.count(treatment), treatment) for treatment in TREATMENTS]
    distances = sorted({0, portrait.length, portrait.target})
    bounds = portrait.decay_bound(torch.tensor(distances)).tolist()
    rows = {
        "mechanism": "rotary",
        "geometry": f"{geometry.dim} channels in {len(found)} pairs, base {geometry.base:,.0f}",
        "pairs": ", ".join(f"{count} {treatment}" for count, treatment in counts if count),
        "angles": _range_text(portrait),
        "decay bound": ", ".join(
            f"{bound:.3g} at distance {distance:,}"
            for distance, bound in zip(distances, bounds, strict=True)
        ),
    }
    if portrait.attention_factor != 1:
        rows["cos and sin"] = f"times {portrait.attention_factor:.4g}"
    if portrait.log_decay is not None:
        tokens = sorted((FADED / portrait.log_decay).tolist())
        rows["fading"] = f"to 1/1000 in {tokens[0]:,.0f} (fastest pair) to {tokens[-1]:,.0f} tokens"
    return rows


def _range_text(portrait: RotaryPortrait) -> str:
    """Which pairs meet angles at the target length that training did not."""
    leaving = portrait.leaves_range.nonzero()[:, 0].tolist()
    if not leaving:
        return "all pairs stay within those that training reached"
    pairs = f"pair {leaving[0]}" if len(leaving) == 1 else f"pairs {leaving[0]} to {leaving[-1]}"
    return f"{pairs} ({len(leaving)}) leave those that training reached"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _pairs(portrait: RotaryPortrait) -> Table:
    table = _table(
        "pair",
        "wavelength, tokens",
        f"turns in {portrait.length:,}",
        "treatment",
        "θ′/θ",
        f"angles at {portrait.target:,}",
    )
    columns = (
        2 * math.pi / portrait.geometry.inv_freq,
        portrait.turns,
        portrait.treatments,
        portrait.ratios,
        portrait.leaves_range,
    )
    for pair, (wavelength, turned, treatment, ratio, leaves) in enumerate(
        zip(*columns, strict=True)
    ):
        table.add_row(
            str(pair),
            f"{wavelength:,.1f}",
            _number(turned.item()),
            treatment,
            f"{ratio:.3g}",
            "out of range" if leaves else "within",
        )
    return table


def _heads(portrait: BiasPortrait) -> Table:
    distances = sorted({*_NEAR, portrait.length, portrait.target})
    reach = {"reach": portrait.reach()}
    if portrait.bidirectional:
        reach = {"reach, past": portrait.reach(), "reach, future": portrait.reach(-1)}
    table = _table("head", *(f"at {distance:,}" for distance in distances), *reach)
    values = portrait.against_here(torch.tensor(distances, dtype=torch.float64)).tolist()
    for head, (biases, *reached) in enumerate(zip(values, *reach.values(), strict=True)):
        shown = [f"> {FARTHEST:,}" if tokens is None else f"{tokens:,}" for tokens in reached]
        table.add_row(str(head), *map(_number, biases), *shown)
    return table


def _number(value: float) -> str:
    """Three digits, all that stand before the point, and a true minus sign."""
    text = f"{value:,.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    return text.replace("-", "−")
