"""What a recipe trains on, shown before it does: pieces of sequences, their positions and text."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text as Line
from transformers import PreTrainedTokenizerBase

from ropepatch.terminal import ProgressDisplay, quiet_transformers
from ropepatch.training.mixture import TrainingMixture
from ropepatch.training.models import load_tokenizer
from ropepatch.training.recipe import Recipe
from ropepatch.training.sequences import open_corpus, training_data
from ropepatch.training.token_cache import Tell

_PIECES = 12  #: shown of a sequence; random positions have hundreds
_TOKENS = 16  #: decoded at each end of a piece
_HEAD, _TAIL = 22, 14  #: characters that are shown of them


def show_preview(recipe: Recipe, title: str) -> None:
    """Print the preview of a recipe; reading its text shows progress."""
    with quiet_transformers():
        with ProgressDisplay(title) as progress:
            data, tokenizer = load_preview(recipe, progress.tell)
        print_preview(data, tokenizer)


@dataclass(frozen=True)
class Piece:
    """Tokens of one document with positions without a jump."""

    name: str  #: `document 2`; of an encoder–decoder model `encoder` or `decoder`
    start: int  #: in the sequence
    end: int
    positions: tuple[int, int]  #: first and last
    scored: int  #: tokens that are labels
    text: str  #: one line, shortened


def load_preview(
    recipe: Recipe, tell: Tell | None = None
) -> tuple[TrainingMixture, PreTrainedTokenizerBase]:
    """The sequences of a recipe, without its model. Raises for what is wrong with its data."""
    corpus = open_corpus(recipe.data)
    tokenizer = load_tokenizer(recipe, corpus)
    return training_data(recipe, corpus, tokenizer, tell), tokenizer


def pieces(
    data: TrainingMixture, index: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Piece]:
    """The pieces of one sequence, in order: they end where a document or a run of positions ends."""
    tokens, scored, columns, starts = data.sequence(index)
    positions = columns.get("position_ids", np.arange(data.length))
    target = data.length - (data.target_length or data.length)
    scored = scored & (np.arange(data.length) >= target)
    jumps = np.flatnonzero(np.diff(positions) != 1) + 1
    cuts = sorted({*starts, *jumps.tolist(), target, 0})
    for start, end in zip(cuts, [*cuts[1:], data.length], strict=True):
        name = f"document {np.searchsorted(starts, start, side='right')}"
        if data.target_length is not None:
            name = "encoder" if start < target else "decoder"
        yield Piece(
            name=name,
            start=start,
            end=end,
            positions=(int(positions[start]), int(positions[end - 1])),
            scored=int(scored[start:end].sum()),
            text=_shorten(tokens[start:end].tolist(), tokenizer),
        )


def print_preview(
    data: TrainingMixture, tokenizer: PreTrainedTokenizerBase, console: Console | None = None
) -> None:
    """The first, the middle and the last sequence of the run as tables."""
    console = console or Console()
    sizes = np.array([len(document) for document in data.text.documents])
    console.print(
        f"{len(sizes):,} documents, {sizes.sum():,} tokens, the longest {sizes.max():,}; "
        f"{(sizes >= data.length).sum():,} fill a sequence of {data.length:,}"
    )
    for index in sorted({0, len(data) // 2, len(data) - 1}):
        found = list(pieces(data, index, tokenizer))
        share = sum(piece.scored for piece in found) / data.length
        console.print(
            f"\nsequence {index + 1:,} of {len(data):,}: {len(found)} piece"
            f"{'s' if len(found) > 1 else ''}, {share:.1%} of its tokens scored"
        )
        console.print(_table(found))
        if len(found) > _PIECES:
            console.print(f"… and {len(found) - _PIECES} more pieces")


def _table(found: list[Piece]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("piece of", no_wrap=True)
    for name in ("tokens", "positions", "scored"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis")
    for piece in found[:_PIECES]:
        table.add_row(
            piece.name,
            _range(piece.start, piece.end - 1),
            _range(*piece.positions),
            f"{piece.scored}/{piece.end - piece.start}",
            Line(piece.text),
        )
    return table


def _range(first: int, last: int) -> str:
    return f"{first}–{last}" if last > first else f"{first}"


def _shorten(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Both ends of what the tokens spell, on one line."""
    if len(ids) <= 2 * _TOKENS:
        text = _visible(str(tokenizer.decode(ids)))
        short = len(text) <= _HEAD + _TAIL + 1
        return text if short else f"{text[:_HEAD]}…{text[-_TAIL:]}"
    head, tail = (str(tokenizer.decode(part)) for part in (ids[:_TOKENS], ids[-_TOKENS:]))
    return f"{_visible(head)[:_HEAD]}…{_visible(tail)[-_TAIL:]}"


def _visible(text: str) -> str:
    return "".join(
        character if character.isprintable() else "⏎" if character == "\n" else "·"
        for character in text
    )
