"""What a recipe trains on, shown before it does: pieces of sequences, their positions and text."""

from bisect import bisect
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
from ropepatch.training.processes import processes
from ropepatch.training.recipe import Recipe
from ropepatch.training.sequences import open_corpus, stage_ends, training_mixtures
from ropepatch.training.token_cache import Tell

_PIECES = 12  #: shown of a sequence; random positions have hundreds
_TOKENS = 16  #: decoded at each end of a piece
_HEAD, _TAIL = 22, 14  #: characters that are shown of them


def show_preview(recipe: Recipe, title: str) -> None:
    """Print the preview of a recipe; reading its text shows progress."""
    with quiet_transformers():
        with ProgressDisplay(title) as progress:
            preview = Preview(recipe, progress.tell)
        if processes().is_main_process:
            preview.print(Console())


@dataclass(frozen=True)
class Piece:
    """Tokens of one document with positions without a jump."""

    name: str  #: `document 2`; of an encoder–decoder model `encoder` or `decoder`
    start: int  #: in the sequence
    end: int
    positions: tuple[int, int]  #: first and last
    scored: int  #: tokens that are labels
    text: str  #: one line, shortened


class Preview:
    """The sequences of a recipe, without its model."""

    def __init__(self, recipe: Recipe, tell: Tell | None = None) -> None:
        """Raises for all that is wrong with the data of the recipe."""
        corpus = open_corpus(recipe.data)
        self.tokenizer = load_tokenizer(recipe, corpus)
        self.mixtures = training_mixtures(recipe, corpus, self.tokenizer, tell)
        self.ends = stage_ends(recipe)

    def mixture(self, index: int) -> TrainingMixture:
        """That of the stage which takes the sequence."""
        return self.mixtures[bisect(self.ends, index)]

    def pieces(self, index: int) -> Iterator[Piece]:
        """Of one sequence in order; one ends where its document or its run of positions ends."""
        data = self.mixture(index)
        tokens, scored, columns, starts = data.sequence(index)
        positions = columns.get("position_ids", np.arange(data.length))
        target = data.length - (data.target_length or data.length)
        # A decoder is told how to begin; the first token of a text follows nothing.
        scored = scored & (np.arange(data.length) >= max(target, 1))
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
                text=_shorten(tokens[start:end].tolist(), self.tokenizer),
            )

    def print(self, console: Console) -> None:
        """The first, the middle and the last sequence of the run as tables."""
        sizes = np.array([len(document) for document in self.mixtures[0].text.documents])
        console.print(
            f"{len(sizes):,} documents, {sizes.sum():,} tokens, the longest {sizes.max():,}"
        )
        for index in sorted({0, self.ends[-1] // 2, self.ends[-1] - 1}):
            found, length = list(self.pieces(index)), self.mixture(index).length
            share = sum(piece.scored for piece in found) / length
            console.print(
                f"\nsequence {index + 1:,} of {self.ends[-1]:,}: {length:,} tokens, {len(found)} "
                f"piece{'s' if len(found) > 1 else ''}, {share:.1%} of its tokens scored"
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
