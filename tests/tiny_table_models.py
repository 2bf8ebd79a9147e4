"""Tiny models with a learned table of absolute positions."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from model_copies import copier
from transformers import PreTrainedModel

TRAINED_LENGTH = 32

_SPECIAL = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_NEO = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 8,
    "max_position_embeddings": 32,
}
_OPT = {
    "hidden_size": 64,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 48,
    "max_position_embeddings": 32,
}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "gpt_neo": ("GPTNeoForCausalLM", _NEO),
    "opt": ("OPTForCausalLM", _OPT),
    "bert": ("BertForMaskedLM", _BERT),
    "roberta": ("RobertaForMaskedLM", _BERT | {"max_position_embeddings": 34}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": 64, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32},
    ),
}
KINDS = list(SIZES)
CAUSAL_KINDS = ["gpt2", "gpt_neo", "opt"]
ENCODER_KINDS = ["bert", "roberta", "distilbert"]
#: Where a kind keeps its table, and the rows before that of position 0.
TABLES = {
    "gpt2": ("transformer.wpe", 0),
    "gpt_neo": ("transformer.wpe", 0),
    "opt": ("model.decoder.embed_positions", 2),
    "bert": ("bert.embeddings.position_embeddings", 0),
    "roberta": ("roberta.embeddings.position_embeddings", 2),
    "distilbert": ("distilbert.embeddings.position_embeddings", 0),
}


def table_model(kind: str, *, length: int = TRAINED_LENGTH) -> PreTrainedModel:
    """A model in evaluation mode with a table for `length` tokens, the same each time."""
    name, sizes = SIZES[kind]
    attribute = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    sizes = {**_SPECIAL, **sizes, attribute: sizes[attribute] + length - TRAINED_LENGTH}
    if kind == "roberta":
        sizes["pad_token_id"] = 1  # its positions count from there
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(model_class.config_class(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


@functools.cache
def _copier(kind: str) -> Callable[[], PreTrainedModel]:
    return copier(table_model(kind))


def fresh_table_model(kind: str) -> PreTrainedModel:
    """The same as `table_model(kind)`, faster: a copy of one that is built once."""
    return _copier(kind)()
