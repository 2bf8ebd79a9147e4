"""LoRA adapters on attention and MLP projections, with trainable embeddings and norms."""

from typing import Any, Literal, NamedTuple

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ropepatch.errors import ConfigError
from ropepatch.placed_parameters import modules_that_train
from ropepatch.training.sections import LoraRecipe, Preset

Targets = Literal["attention", "mlp", "all"]


class Parts(NamedTuple):
    """Which weights of a model train."""

    targets: Targets  #: projections that get an adapter
    embeddings: bool
    norms: bool


_PRESETS: dict[Preset, Parts] = {
    "lora": Parts("all", embeddings=False, norms=False),
    "longlora": Parts("attention", embeddings=True, norms=True),
    # Embeddings are most of what an adapter of LongLoRA weighs: vocabulary × hidden.
    "longlora-norms": Parts("attention", embeddings=False, norms=True),
}


def trained_parts(recipe: LoraRecipe) -> Parts:
    """What the preset trains, changed by what the recipe says itself; not for the preset full."""
    changes: dict[str, Any] = {
        "targets": recipe.targets,
        "embeddings": recipe.train_embeddings,
        "norms": recipe.train_norms,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    return _PRESETS[recipe.preset]._replace(**given)


def add_lora(model: PreTrainedModel, recipe: LoraRecipe) -> PeftModel:
    """The model wrapped in an adapter whose only trainable weights are those of the recipe.

    Tied embeddings stay tied: peft trains one copy for the input and the output side.
    """
    parts = trained_parts(recipe)
    seq2seq = model.config.is_encoder_decoder
    if seq2seq and parts.embeddings:
        # peft would train a copy that neither stack reads.
        raise ConfigError(
            "lora.train_embeddings (of the preset longlora) is for models with one embedding; "
            f"encoder and decoder of {type(model).__name__} each have theirs; leave it out, or "
            "choose the preset longlora-norms"
        )
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
        r=recipe.r,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=_projections(model, parts.targets),
        modules_to_save=_modules_to_save(model, parts) or None,
        ensure_weight_tying=parts.embeddings and _tied(model),
        use_dora=recipe.dora,
        use_rslora=recipe.rslora,
    )
    return get_peft_model(model, config)


def _projections(model: PreTrainedModel, targets: Targets) -> list[str]:
    """Full names of the linear layers inside of the model's blocks."""
    head = model.get_output_embeddings()
    wanted = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and targets in ("all", _part(name))
    ]
    if not wanted:
        raise ConfigError(
            f"lora.targets {targets!r}: {type(model).__name__} has no such linear layers"
        )
    return wanted


def _part(name: str) -> Targets:
    """Attention projections live in a submodule that is named for attention in every model."""
    return "attention" if "attn" in name or "attention" in name.lower() else "mlp"


def _modules_to_save(model: PreTrainedModel, parts: Parts) -> list[str]:
    """Last parts of module names: peft matches them as suffixes."""
    leaves = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    saved = [leaves[model.get_input_embeddings()]] if parts.embeddings else []
    if parts.embeddings and not _tied(model):
        saved.append(leaves[model.get_output_embeddings()])
    # What a patch put in starts from nothing, so it trains whatever else does.
    saved += sorted({path.rpartition(".")[2] for path in modules_that_train(model)})
    if parts.norms:
        norms = {leaf for module, leaf in leaves.items() if "norm" in type(module).__name__.lower()}
        saved += sorted(norms)
    return saved


def _tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
