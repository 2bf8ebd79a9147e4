"""The table of replacements: every model and every method that may take its encoding's place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tiny_bias_models
import tiny_models
import tiny_table_models
import torch
from covering import values
from tiny_bias_models import fresh_bias_model
from tiny_models import fresh_model, token_ids
from tiny_table_models import ENCODER_KINDS, fresh_table_model
from torch import Tensor
from transformers import PreTrainedModel

from ropepatch import patch_model

LENGTH = 40  # beyond the trained length of the tiny models, 32
FACTOR = 2
IDS = token_ids(2, LENGTH)

ALIBI = [
    ("alibi", {}),
    ("alibi", {"slopes": "trainable"}),
    ("alibi", {"slopes": "random", "seed": 5}),
]
BIASES = [("kerple_log", {}), ("kerple_power", {}), ("sandwich", {}), ("t5_bias", {})]
TABLES = [("sinusoidal", {}), ("scaled_sinusoidal", {})]
ON_ROTARY = [*ALIBI, *BIASES, *TABLES, ("xpos", {}), ("nope", {}), ("learned", {})]
ON_ALIBI = [*BIASES, ("nope", {})]
ON_RELATIVE = [*ALIBI[:1], *BIASES[:3], ("learned", {}), ("nope", {})]
ON_ABSOLUTE = [("linear", {}), *TABLES, *ALIBI[:1], BIASES[0], *BIASES[2:], ("nope", {})]


@dataclass(frozen=True)
class Cell:
    """One model and one method."""

    kind: str
    method: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return "-".join([self.kind, self.method, *map(str, self.options.values())])


ROTARY_CELLS = [Cell(kind, *each) for kind in tiny_models.KINDS for each in ON_ROTARY]
ALIBI_CELLS = [Cell(kind, *each) for kind in tiny_bias_models.ALIBI_KINDS for each in ON_ALIBI]
RELATIVE_CELLS = [
    Cell(kind, method, options | {"part": part})
    for kind in tiny_bias_models.RELATIVE_KINDS
    for method, options in ON_RELATIVE
    for part in ("both", "encoder", "decoder")
]
ABSOLUTE_CELLS = [Cell(kind, *each) for kind in tiny_table_models.KINDS for each in ON_ABSOLUTE]
ABSOLUTE_CELLS += [Cell(kind, "alibi", {"directions": "split"}) for kind in ENCODER_KINDS]
CELLS = [*ROTARY_CELLS, *ALIBI_CELLS, *RELATIVE_CELLS, *ABSOLUTE_CELLS]


def _one_of_each_path(kind: str, turn: int) -> list[Cell]:
    """Of a rotary model, one method of each way in: biases, vectors, xpos and nothing at all.

    All biases are added by one attention function and all vectors by one hook, whatever they are.
    """
    biases = [*ALIBI[1:], *BIASES]
    vectors = [*TABLES, ("learned", {})]
    chosen = [ALIBI[0], biases[turn % len(biases)], vectors[turn % len(vectors)]]
    return [Cell(kind, *each) for each in (*chosen, ("xpos", {}), ("nope", {}))]


def cells_of_every_path() -> list[Cell]:
    """The whole table, but of rotary models all methods for two only, and those of each path for the rest."""
    whole = ("llama", "gemma3_text")
    cells = [cell for cell in CELLS if cell.kind not in tiny_models.KINDS or cell.kind in whole]
    rest = (kind for kind in tiny_models.KINDS if kind not in whole)
    return cells + [c for turn, kind in enumerate(rest) for c in _one_of_each_path(kind, turn)]


def _few(cells: list[Cell], shift: int) -> list[Cell]:
    """Cells in which every kind and every method of the table occurs."""
    table = {(cell.kind, str(cell).removeprefix(cell.kind)): cell for cell in cells}
    kinds, methods = (list(dict.fromkeys(names)) for names in zip(*table, strict=True))
    rows = [row for row in values({"kind": kinds, "method": methods}, shift) if row in table]
    met = {name for row in rows for name in row}
    rows += [row for row in table if not met.issuperset(row)]
    return [table[row] for row in rows]


def crossed(cells: list[Cell], ways: Sequence[object], shift: int = 0) -> list[tuple[Any, ...]]:
    """Each cell with one of two ways, so that every kind and every method meets both where it can."""
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    methods = list(dict.fromkeys(str(cell).removeprefix(cell.kind) for cell in cells))
    places = [
        kinds.index(cell.kind) + methods.index(str(cell).removeprefix(cell.kind)) for cell in cells
    ]
    return [
        (cell, ways[(place + shift) % len(ways)]) for cell, place in zip(cells, places, strict=True)
    ]


def few_cells(shift: int = 0) -> list[Cell]:
    """Cells that stand for the whole table: each kind and each method of every mechanism once."""
    tables = (ROTARY_CELLS, ALIBI_CELLS, RELATIVE_CELLS, ABSOLUTE_CELLS)
    return [cell for cells in tables for cell in _few(cells, shift)]


def fresh(kind: str) -> PreTrainedModel:
    """The unpatched model of a kind, the same each time."""
    if kind in tiny_bias_models.KINDS:
        return fresh_bias_model(kind)
    return fresh_table_model(kind) if kind in tiny_table_models.KINDS else fresh_model(kind)


def replaced(cell: Cell, model: PreTrainedModel | None = None, factor: float = FACTOR) -> Any:
    """The patched model, what trains in its new encoding somewhere else than where it starts."""
    model = patch_model(model or fresh(cell.kind), cell.method, factor, **cell.options)
    generator = torch.Generator().manual_seed(7)
    for parameter in placed(model, cell.method).values():
        parameter.data.copy_(0.2 + torch.rand(parameter.shape, generator=generator))
    return model


def placed(model: Any, method: str) -> dict[str, Tensor]:
    """What a method put into a model to be trained, by its full name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if method in name.split(".")[:-1]
    }


@torch.no_grad()
def answers(model: Any, ids: Tensor = IDS, **more: Any) -> Tensor:
    """Logits of one call, without gradients."""
    return called(model, ids, **more)


def called(model: Any, ids: Tensor = IDS, **more: Any) -> Tensor:
    """Logits of one call; encoder–decoder models read the same tokens on both sides."""
    if model.config.is_encoder_decoder:
        more = {"decoder_input_ids": ids, **more}
    if model.can_generate():
        more = {"use_cache": False, **more}
    return model(input_ids=ids, **more).logits
