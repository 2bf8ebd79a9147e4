"""LoRA adapters on attention and MLP projections, with trainable embeddings and norms."""

from typing import Literal

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ropepatch.errors import ConfigError
from ropepatch.training.sections import LoraRecipe

Part = Literal["attention", "mlp"]


def add_lora(model: PreTrainedModel, recipe: LoraRecipe) -> PeftModel:
    """The model wrapped in an adapter whose only trainable weights are those of the recipe.

    Tied embeddings stay tied: peft trains one copy for the input and the output side.
    """
    seq2seq = model.config.is_encoder_decoder
    if seq2seq and recipe.train_embeddings:
        # peft would train a copy that neither stack reads.
        raise ConfigError(
            "lora.train_embeddings is for models with one embedding; encoder and decoder of "
            f"{type(model).__name__} each have theirs; leave it out"
        )
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
        r=recipe.r,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=_projections(model, recipe),
        modules_to_save=_modules_to_save(model, recipe) or None,
        ensure_weight_tying=recipe.train_embeddings and _tied(model),
    )
    return get_peft_model(model, config)


def _projections(model: PreTrainedModel, recipe: LoraRecipe) -> list[str]:
    """Full names of the linear layers inside of the model's blocks."""
    head = model.get_output_embeddings()
    wanted = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and recipe.targets in ("all", _part(name))
    ]
    if not wanted:
        raise ConfigError(
            f"lora.targets {recipe.targets!r}: {type(model).__name__} has no such linear layers"
        )
    return wanted


def _part(name: str) -> Part:
    """Attention projections live in a submodule that is named for attention in every model."""
    return "attention" if "attn" in name or "attention" in name.lower() else "mlp"


def _modules_to_save(model: PreTrainedModel, recipe: LoraRecipe) -> list[str]:
    """Last parts of module names: peft matches them as suffixes."""
    leaves = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    saved = [leaves[model.get_input_embeddings()]] if recipe.train_embeddings else []
    if recipe.train_embeddings and not _tied(model):
        saved.append(leaves[model.get_output_embeddings()])
    if recipe.train_norms:
        norms = {leaf for module, leaf in leaves.items() if "norm" in type(module).__name__.lower()}
        saved += sorted(norms)
    return saved


def _tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
