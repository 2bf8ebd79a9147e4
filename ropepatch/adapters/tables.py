"""Tables of absolute positions: GPT-2, GPT-Neo, OPT, BERT, RoBERTa, DistilBERT."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.pretrained import text_modules
from ropepatch.attention.position_modules import require_positions
from ropepatch.errors import UnsupportedModelError
from ropepatch.methods import Method
from ropepatch.methods.replacement import Replacement, TableMethod
from ropepatch.positions import interpolate_rows

NAMES = ("wpe", "position_embeddings", "embed_positions")  #: under which models hold their tables


@dataclass(frozen=True)
class PositionTable:
    """A learned table: a row for every position, looked up by number."""

    path: str
    parent: nn.Module
    module: nn.Embedding
    offset: int  #: rows before that of position 0

    @property
    def rows(self) -> int:
        """Positions that have a row."""
        return self.module.num_embeddings - self.offset

    def buffers(self, length: int) -> dict[str, Tensor]:
        """What the parent keeps for every position, for `length` of them."""
        made = {}
        for name, buffer in self.parent.named_buffers(recurse=False):
            if name == "position_ids":
                made[name] = torch.arange(length, device=buffer.device).expand(1, -1)
            if name == "token_type_ids":
                # RoBERTa looks it up by numbers that count from its offset.
                made[name] = buffer.new_zeros(1, length + self.offset)
        return made


def find_tables(model: PreTrainedModel) -> list[PositionTable]:
    """Every table of positions of the text model, none for models that have another encoding.

    Raises UnsupportedModelError for one that an adapter trains.
    """
    modules = text_modules(model)
    found = []
    for path, module in modules.items():
        if path.rpartition(".")[2] not in NAMES:
            continue
        if hasattr(module, "active_adapter"):
            raise UnsupportedModelError(
                f"an adapter trains the table of positions {path!r}, which a patch would change; load the "
                "model without the adapter, patch it, then train a new one"
            )
        if isinstance(module, nn.Embedding):
            parent = modules[path.rpartition(".")[0]]
            padding = getattr(module, "padding_idx", None)
            offset = getattr(module, "offset", 0 if padding is None else padding + 1)
            found.append(PositionTable(path, parent, module, int(offset)))
    return found


@dataclass(eq=False)
class TableForward:
    """`forward` of one table, on this one model: other vectors for the same positions.

    PEFT trains a copy of a table with all that it holds, which is therefore no more than it needs.
    """

    module: nn.Embedding
    offset: int
    method: Method
    stack: nn.Module | None  #: holds the module of a method that makes vectors, by its name

    def __call__(self, position_ids: Tensor) -> Tensor:
        return self.vectors(position_ids - self.offset)

    def vectors(self, positions: Tensor) -> Tensor:
        """(batch, n) → (batch, n, channels). Padding, which is before position 0, keeps its row."""
        weight = self.module.weight
        if isinstance(self.method, TableMethod):
            assert self.stack is not None
            self._require(positions, self.method.name, None)
            made: Tensor = self.stack.get_submodule(self.method.name)(positions.clamp(min=0))
            return (made * (positions >= 0)[..., None]).to(weight.dtype)
        if isinstance(self.method, Replacement):
            return weight.new_zeros(*positions.shape, weight.shape[1])
        rows = round((self.module.num_embeddings - self.offset) * self.method.factor)
        self._require(positions, f"the table, interpolated by {self.method.factor:g},", rows)
        places = torch.where(positions < 0, positions, self.method.absolute(positions))
        return interpolate_rows(weight, places + self.offset).to(weight.dtype)

    def _require(self, positions: Tensor, what: str, rows: int | None) -> None:
        if not torch.compiler.is_compiling():
            require_positions(what, positions, rows, first=-self.offset)


class OptTableForward(TableForward):
    """OPTLearnedPositionalEmbedding, which counts tokens by the mask where nobody tells positions."""

    def __call__(  # type: ignore[override]
        self, attention_mask: Tensor, past_key_values_length: int = 0, position_ids: Any = None
    ) -> Tensor:
        if position_ids is None:
            counted = attention_mask.long().cumsum(1) * attention_mask.long() - 1
            position_ids = counted[:, past_key_values_length:]
        return self.vectors(position_ids)


def table_forward(table: PositionTable, method: Method, stack: nn.Module) -> TableForward:
    """What stands in for a table's own forward."""
    kind = OptTableForward if hasattr(table.module, "offset") else TableForward
    return kind(
        table.module, table.offset, method, stack if isinstance(method, TableMethod) else None
    )
