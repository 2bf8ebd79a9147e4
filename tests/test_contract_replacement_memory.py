"""Memory of replaced encodings is linear in the length: no matrix of queries and keys is ever made."""

from typing import Any

import pytest
import torch
from replacement_cells import ALIBI, BIASES, Cell, crossed, fresh, placed, replaced
from tiny_models import token_ids
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ropepatch import patch_model

LENGTH = 640
FACTOR = LENGTH / 32
MATRIX = LENGTH * LENGTH  # elements of one head's scores; activations of the tiny models have less
BOTH = {"part": "both"}

CELLS = [Cell("llama", *each) for each in (*ALIBI, *BIASES, ("xpos", {}))]
CELLS += [Cell("llama", "t5_bias", {"per_layer": True}), Cell("gemma3_text", "kerple_log")]
CELLS += [
    Cell("gemma2", "t5_bias"),
    Cell("smollm3", "alibi"),
]  # capped scores; layers without a bias
CELLS += [Cell(k, m) for k in ("bloom", "mpt", "falcon") for m in ("kerple_log", "t5_bias", "nope")]
CELLS += [Cell(kind, method, BOTH) for kind in ("t5", "umt5") for method in ("kerple_log", "nope")]
CELLS += [Cell(kind, "kerple_log") for kind in ("gpt2", "gpt_neo", "opt", "bert", "distilbert")]
CELLS += [Cell("bert", "alibi", {"directions": "split"})]


class LargestTensor(TorchDispatchMode):
    """The most elements for which any operation within has made memory; views have none of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                held = each.untyped_storage().nbytes() // each.element_size()
                self.elements = max(self.elements, held)
        return made


def inputs(model, padding):
    """A row of tokens with padding, or packed, or neither."""
    ids = token_ids(1, LENGTH)
    given = {"input_ids": ids}
    if padding == "padded":
        given["attention_mask"] = (torch.arange(LENGTH) >= 200)[None].long()
    if padding == "packed":
        given["position_ids"] = torch.cat([torch.arange(300), torch.arange(LENGTH - 300)])[None]
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids
    if model.can_generate():
        given["use_cache"] = False
    return given


def largest_in_training(model, padding):
    given = inputs(model, padding)
    with LargestTensor() as largest:
        model.train()(**given).logits.square().mean().backward()
    return largest.elements


def trained(cell):
    """With parameters that are not near zero, which no shortcut may skip."""
    return replaced(cell, factor=FACTOR)


@pytest.mark.parametrize(("cell", "padding"), crossed(CELLS, ["none", "padded"]), ids=str)
def test_training_makes_no_matrix_of_queries_and_keys(cell, padding):
    model = trained(cell)
    assert largest_in_training(model, padding) < MATRIX
    for name, parameter in placed(model, cell.method).items():
        assert parameter.grad is not None, name


@pytest.mark.parametrize(
    "cell", [c for c in CELLS if c.kind in ("llama", "gemma3_text", "gpt2")], ids=str
)
def test_packed_documents_make_no_matrix_of_queries_and_keys(cell):
    assert largest_in_training(trained(cell), "packed") < MATRIX


@pytest.mark.parametrize(("cell", "padding"), crossed(CELLS, ["none", "padded"], 1), ids=str)
def test_inference_makes_no_matrix_of_queries_and_keys(cell, padding):
    model = trained(cell)
    given = inputs(model, padding)
    with LargestTensor() as largest, torch.no_grad():
        model(**given)
    assert largest.elements < MATRIX


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_eager_attention_makes_one_and_is_seen(kind):
    model = patch_model(fresh(kind), "kerple_log", FACTOR, attention="eager")
    assert largest_in_training(model, "none") >= MATRIX
