"""What `ropepatch inspect` says of a model: how it encodes positions, and what is patched."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ropepatch.adapters.bias_stacks import BiasStack, alibi_geometry, find_bias_stacks
from ropepatch.adapters.plan import checked_length
from ropepatch.adapters.pretrained import pretrained_model, text_config, trained_length
from ropepatch.adapters.rope_parameters import original_length as unscaled_length
from ropepatch.adapters.rope_parameters import parameters_of, rope_types
from ropepatch.adapters.tables import find_tables
from ropepatch.errors import ConfigError
from ropepatch.manifest import Manifest
from ropepatch.patch import list_methods, mechanism_of, patch_info


def describe(model: nn.Module) -> dict[str, str]:
    """Heading and text of every row. Raises UnsupportedModelError for a model that is not understood."""
    root = pretrained_model(model)
    config = text_config(root)
    # First, as it knows which models are not understood.
    scaling, replacing = (list_methods(root, replacing=way) for way in (False, True))
    manifest = Manifest.in_config(config)
    length = trained_length(root) if manifest is None else manifest.max_position_embeddings
    info = patch_info(model)
    rows = {
        "model": f"{type(root).__name__} ({config.model_type})",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "tokens": "the config does not say" if length is None else f"{length:,}",
        "positions": _positions(root),
        "patch": "none" if manifest is None else manifest.summary(),
        "methods": ", ".join(scaling),
        "replaced by": ", ".join(replacing),
    }
    if info is not None and info.notes:
        rows["notes"] = "; ".join(info.notes)
    return rows


def original_length(model: nn.Module) -> int | None:
    """Tokens that a checkpoint was trained to before any patch; None where its config does not say."""
    root = pretrained_model(model)
    manifest = Manifest.in_config(text_config(root))
    return trained_length(root) if manifest is None else manifest.original_max_position_embeddings


def length_to_fit(model: nn.Module) -> int | None:
    """What a patch takes for the trained length in the place of any other scaling; None where unknown."""
    config = text_config(pretrained_model(model))
    if Manifest.in_config(config) is None and getattr(config, "rope_parameters", None):
        return unscaled_length(config, None)
    return original_length(model)


def require_length(model: nn.Module, given: int | None) -> int:
    """`original_length`, or what a user gave instead. Raises ConfigError for neither."""
    length = original_length(model) if given is None else checked_length(given)
    if length is None:
        raise ConfigError(
            "the checkpoint does not say to how many tokens it was trained; give "
            "--original-max-position-embeddings (BLOOM: 2048; T5: 512; mT5: 1024)"
        )
    return length


def _positions(model: PreTrainedModel) -> str:
    """How positions are encoded, as the config says."""
    stacks = find_bias_stacks(model)
    if mechanism_of(model) == "absolute":
        rows = sorted({table.rows for table in find_tables(model)})
        return f"absolute, a learned vector for each of {rows[0]:,} positions"
    if not stacks:
        return _rotations(text_config(model))
    if stacks[0].mechanism == "alibi":
        return _slopes(stacks[0].config)
    return "relative, " + "; ".join(map(_buckets, stacks))


def _rotations(config: PreTrainedConfig) -> str:
    """`rotary, default, base 10,000`, for every layer type that rotates."""
    lines = []
    for layer_type, rope_type in rope_types(config).items():
        base = parameters_of(config.rope_parameters, layer_type)["rope_theta"]
        where = f"{layer_type}: " if layer_type else ""
        lines.append(f"{where}rotary, {rope_type}, base {base:,.0f}")
    return "; ".join(lines)


def _slopes(config: PreTrainedConfig) -> str:
    """`ALiBi, 8 heads, slopes 0.5 to 0.00391`."""
    slopes = alibi_geometry(config, length=1).slopes  # which do not depend on the length
    return f"ALiBi, {len(slopes)} heads, slopes {slopes.max():.3g} to {slopes.min():.3g}"


def _buckets(stack: BiasStack) -> str:
    """`encoder: 16 + 16 buckets up to distance 128`: past and future."""
    buckets = stack.config.relative_attention_num_buckets
    shown = str(buckets) if stack.causal else f"{buckets // 2} + {buckets // 2}"
    reach = stack.config.relative_attention_max_distance
    return f"{stack.part}: {shown} buckets up to distance {reach}"
