"""Replaced encodings by their definitions: stock code in float64, with dense matrices put in by hand."""

import math
import types
from collections.abc import Callable
from typing import Any

import torch
from hand_scaled import press_slopes
from replacement_cells import IDS, LENGTH, Cell, fresh
from tiny_bias_models import ALIBI_KINDS, RELATIVE_KINDS
from tiny_table_models import KINDS as TABLE_KINDS
from tiny_table_models import TABLES, TRAINED_LENGTH, table_model
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.falcon import modeling_falcon
from transformers.models.t5.modeling_t5 import T5Attention

NAME = "dense_reference"
INTERLEAVED = ("cohere", "glm4", "helium")  # neighbouring channels are rotated together
WITH_VECTORS = ("sinusoidal", "scaled_sinusoidal", "learned")
LONG = 2 * TRAINED_LENGTH  # positions of a table at factor 2
Parameters = dict[str, Tensor]


def distances(length: int = LENGTH) -> Tensor:
    """Distance query − key, float64. (query, key)"""
    places = torch.arange(length).double()
    return places[:, None] - places


def dense_bias(
    cell: Cell, heads: int, both: bool, parameters: Parameters, length: int = LENGTH
) -> Tensor:
    """What is added to scores, by the formulas of the papers. (heads, query, key)"""
    D = distances(length).abs()

    def by_head(values: Tensor) -> Tensor:
        return values.double()[:, None, None]

    if cell.method == "alibi":
        return _alibi(cell, heads, both, parameters, length)
    if cell.method == "kerple_log":
        return -by_head(parameters["r1"]) * torch.log(1 + by_head(parameters["r2"]) * D)
    if cell.method == "kerple_power":
        return -by_head(parameters["r1"]) * D ** by_head(parameters["r2"])
    if cell.method == "sandwich":
        total = sum(torch.cos(D / 10000 ** (2 * i / 128)) for i in range(1, 65))
        return torch.stack([(total - 64) / (8 * h / heads) for h in range(1, heads + 1)])
    if cell.method == "t5_bias":
        buckets = T5Attention._relative_position_bucket(-distances(length).long(), both, 32, 128)
        return parameters["weight"].double()[buckets].permute(2, 0, 1)
    return torch.zeros(heads, length, length, dtype=torch.float64)


def biases_by_layer(cell: Cell, heads: int, both: bool, parameters: Parameters) -> Tensor:
    """One for all layers, or one for each where the parameters are each layer's own."""
    if not cell.options.get("per_layer"):
        return dense_bias(cell, heads, both, parameters)
    layers = [
        dense_bias(cell, heads, both, {name: each[layer] for name, each in parameters.items()})
        for layer in range(2)
    ]
    return torch.stack(layers)


def _alibi(cell: Cell, heads: int, both: bool, parameters: Parameters, length: int) -> Tensor:
    D = distances(length)
    slopes = {
        "geometric": lambda: press_slopes(heads),
        "trainable": lambda: parameters["slopes"].double(),
        "random": lambda: torch.exp2(
            -8 * torch.rand(heads, generator=torch.Generator().manual_seed(5), dtype=D.dtype)
        ),
    }[cell.options.get("slopes", "geometric")]()
    if not (both and cell.options.get("directions") == "split"):
        return -slopes[:, None, None] * D.abs()
    slopes = press_slopes(heads // 2).repeat(2)
    bias = -slopes[:, None, None] * D.abs()
    for head in range(heads):
        bias[head][D < 0 if head < heads // 2 else D > 0] = -math.inf
    return bias


def dense_vectors(cell: Cell, dim: int, parameters: Parameters, length: int = LENGTH) -> Tensor:
    """What is added to embeddings, number by number. (length, dim)"""
    if cell.method == "learned":
        return parameters["weight"].double()[:length]
    rows = [
        [(math.cos if c % 2 else math.sin)(p / 10000 ** ((c - c % 2) / dim)) for c in range(dim)]
        for p in range(length)
    ]
    vectors = torch.tensor(rows, dtype=torch.float64)
    return vectors * parameters["scalar"] if cell.method == "scaled_sinusoidal" else vectors


def short_names(parameters: Parameters, prefix: str = "") -> Parameters:
    """By the last part of their names, of a stack whose name starts with `prefix`."""
    return {
        name.rpartition(".")[2]: value
        for name, value in parameters.items()
        if name.startswith(prefix)
    }


def dense_logits(cell: Cell, parameters: Parameters, monkeypatch: Any, ids: Tensor = IDS) -> Tensor:
    """Logits of the cell's model by definition, from what trains in it, by its full name."""
    if cell.kind in ALIBI_KINDS:
        return _on_alibi(cell, short_names(parameters), monkeypatch, ids)
    if cell.kind in RELATIVE_KINDS:
        return _on_relative(cell, parameters, ids)
    if cell.kind in TABLE_KINDS:
        return _on_table(cell, short_names(parameters), ids)
    return _on_rotary(cell, short_names(parameters), ids)


def _on_rotary(cell: Cell, parameters: Parameters, ids: Tensor) -> Tensor:
    model = fresh(cell.kind).double()
    model.config._experts_implementation = "eager"  # grouped products know no float64
    if cell.method != "xpos":
        _stop_rotation(model)
    decays = None
    if cell.method == "xpos":
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // 4
        share = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
        rotated = round(head_dim * (share if isinstance(share, float) else 1.0))
        decays = _xpos_decays(head_dim, rotated, cell.kind in INTERLEAVED)
    use_dense_attention(model, biases_by_layer(cell, 4, False, parameters), decays)
    if cell.method not in WITH_VECTORS:
        return model(input_ids=ids, use_cache=False).logits
    vectors = dense_vectors(cell, model.config.hidden_size, parameters)
    embeddings = model.get_input_embeddings()(ids) + vectors
    return model(inputs_embeds=embeddings, use_cache=False).logits


def _stop_rotation(model: Any) -> None:
    """All angles 0."""

    def still(stock: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            cos, sin = stock(*args, **kwargs)
            return torch.ones_like(cos), torch.zeros_like(sin)

        return forward

    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = still(module.forward)


def _xpos_decays(head_dim: int, rotated: int, interleaved: bool) -> Tensor:
    """ζ^(D/512) of every channel, 1 of those that are not rotated. (channels, query, key)"""
    D = distances()
    decays = torch.ones(head_dim, *D.shape, dtype=torch.float64)
    for channel in range(rotated):
        pair = channel // 2 if interleaved else channel % (rotated // 2)
        zeta = (2 * pair + 0.4 * rotated) / (1.4 * rotated)
        decays[channel] = zeta ** (D / 512)
    return decays


def use_dense_attention(model: Any, bias: Tensor, decays: Tensor | None = None) -> None:
    """Every layer with positions adds `bias`, ((layers,) heads, query, key), to its scores."""

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: object,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **rest: object,
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
        has_positions = getattr(module, "use_rope", True)
        if decays is None or not has_positions:
            scores = query @ key.mT
        else:
            scores = torch.einsum("bhqc,bhkc,cqk->bhqk", query, key, decays)
        scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        if has_positions:
            scores = scores + (bias[module.layer_idx] if bias.dim() == 4 else bias)
        D = distances(query.shape[2])
        if getattr(module, "is_causal", True):
            scores = scores.masked_fill(D < 0, -math.inf)
        if sliding_window is not None:
            scores = scores.masked_fill(sliding_window <= D, -math.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register(NAME, attention)
    model.config._attn_implementation = NAME
    for module in model.modules():
        if type(module).__name__ == "GPTNeoSelfAttention":
            window = module.config.window_size if module.attention_type == "local" else None
            module._attn = _neo(module, attention, window)


def _neo(module: Any, attention: Callable[..., Any], window: int | None) -> Callable[..., Any]:
    """GPT-Neo's scores are not scaled, and its attention is not called through the interface."""

    def _attn(query: Tensor, key: Tensor, value: Tensor, mask: object) -> tuple[Tensor, None]:
        out, _ = attention(module, query, key, value, None, 1.0, window)
        return out.transpose(1, 2), None

    return _attn


def _on_table(cell: Cell, parameters: Parameters, ids: Tensor) -> Tensor:
    """A stock model with a longer table, whose rows are made by hand."""
    stock = fresh(cell.kind).double()
    path, offset = TABLES[cell.kind]
    model = table_model(cell.kind, length=LONG).double()
    weights = {name: value for name, value in stock.state_dict().items() if path not in name}
    model.load_state_dict(weights, strict=False)
    before, table = stock.get_submodule(path).weight, model.get_submodule(path).weight
    table.data.zero_()
    if cell.method == "linear":
        rows = before[offset:]
        for p in range(LONG):
            upper = rows[min((p + 1) // 2, TRAINED_LENGTH - 1)]
            table.data[offset + p] = (rows[p // 2] + upper) / 2
    elif cell.method in WITH_VECTORS:
        vectors = dense_vectors(cell, table.shape[1], parameters, LONG)
        owner = model.get_submodule(path)
        del owner.weight
        owner.weight = torch.cat([table[:offset].detach(), vectors])  # with its gradient
    both = cell.kind in ("bert", "roberta", "distilbert")
    use_dense_attention(model, biases_by_layer(cell, 4, both, parameters))
    return model(input_ids=ids).logits


def _on_alibi(cell: Cell, parameters: Parameters, monkeypatch: Any, ids: Tensor) -> Tensor:
    model = fresh(cell.kind).double()
    config = model.config
    heads, rows = config.num_attention_heads, ids.shape[0]
    bias = dense_bias(cell, heads, False, parameters)
    repeated = bias.repeat(rows, 1, 1)
    if cell.kind == "bloom":
        model.transformer.build_alibi_tensor = lambda *_, **__: repeated
    elif cell.kind == "mpt":
        config.max_seq_len = LENGTH
        model.transformer.build_mpt_alibi_tensor = lambda *_, **__: bias
    else:
        config._attn_implementation = "sdpa"  # its eager code adds the bias twice
        undone = repeated * math.sqrt(config.hidden_size // heads)  # by which it divides
        monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", lambda *_, **__: undone)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def _on_relative(cell: Cell, parameters: Parameters, ids: Tensor) -> Tensor:
    model = fresh(cell.kind).double()
    model.config._attn_implementation = "eager"
    arguments: dict[str, Any] = {"input_ids": ids, "decoder_input_ids": ids}
    for stack, side in (("encoder", ""), ("decoder", "decoder_")):
        if cell.options["part"] not in ("both", stack):
            continue
        own = short_names(parameters, stack)
        bias = dense_bias(cell, model.config.num_heads, stack == "encoder", own)
        for module in getattr(model, stack).modules():
            if getattr(module, "has_relative_attention_bias", False):
                module.compute_bias = types.MethodType(
                    lambda *_, bias=bias, **__: bias[None], module
                )
        if cell.method == "learned":
            vectors = dense_vectors(cell, model.config.d_model, own)
            del arguments[f"{side}input_ids"]
            arguments[f"{side}inputs_embeds"] = model.shared(ids) + vectors
    return model(**arguments, use_cache=False).logits
