"""Loading what `save_pretrained` saved: a model or an adapter, with its patch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ropepatch.adapters.plan import NOTICE, REFUSALS
from ropepatch.adapters.pretrained import (
    decoder_config,
    language_model_class,
    pretrained_model,
    text_config,
)
from ropepatch.checkpoint.sidecar import ADAPTER_CONFIG, read_json, read_sidecar
from ropepatch.errors import (
    AlreadyScaledError,
    BaseMismatchError,
    CheckpointError,
    RopepatchError,
    SidecarError,
)
from ropepatch.extras import require_package
from ropepatch.manifest import CONFIG_KEY, Manifest
from ropepatch.patch import patch_info, patch_model, unpatch_model
from ropepatch.placed_parameters import PLACED, load_placed, require_placed, unreported
from ropepatch.verification import verify_native


def load_pretrained(
    directory: str | Path, *, base_model: nn.Module | None = None, **kwargs: Any
) -> nn.Module:
    """The patched model or PeftModel that `save_pretrained` saved.

    An adapter goes on `base_model`, or on the base that its own config names: an unpatched base is patched,
    one with the same patch is taken as it is. Other keywords go to transformers' `from_pretrained`. Raises
    CheckpointError for a directory that holds neither, SidecarError for a manifest that is missing, damaged
    or edited, BaseMismatchError for a base with another patch.
    """
    directory = Path(directory)
    try:
        if (directory / ADAPTER_CONFIG).is_file():
            return load_adapter(directory, base_model, kwargs)
        if (directory / "config.json").is_file():
            return load_model(directory, kwargs)
    except RopepatchError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not load {directory}: {error}") from error
    raise CheckpointError(
        f"{directory} holds neither a config.json nor an {ADAPTER_CONFIG}; give the directory that"
        " save_pretrained wrote"
    )


def load_model(
    directory: Path,
    kwargs: dict[str, Any],
    build: Callable[[PreTrainedConfig], PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """A full checkpoint, loaded unpatched (or built of its config by `build`) and patched again."""
    read_json(directory / "config.json")
    config = AutoConfig.from_pretrained(directory)
    for refusal in REFUSALS:
        if NOTICE in str(getattr(config, f"_{refusal}")):
            setattr(config, f"_{refusal}", None)
    text = decoder_config(config)
    where = str(directory / "config.json")
    manifest = Manifest.in_config(text, where)
    if manifest is None:
        raise SidecarError(
            f"{where} names no ropepatch patch; load it with transformers' from_pretrained"
        )
    written = {name: getattr(text, name) for name in manifest.unpatched}
    for name, value in manifest.unpatched.items():
        setattr(text, name, value)
    delattr(text, CONFIG_KEY)
    model_class = getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM)
    if build:
        model = apply(manifest, build(config))
    else:
        with unreported(manifest):
            base = model_class.from_pretrained(directory, config=config, **kwargs)
        model = apply(manifest, base)
        load_placed(model, *sorted(directory.glob("model*.safetensors")))
    edited = [name for name, value in written.items() if getattr(text_config(model), name) != value]
    if edited:
        raise SidecarError(
            f"{', '.join(edited)} in {where} was edited after ropepatch wrote it and contradicts the"
            f" manifest ({manifest.summary()}); undo the edit, or patch the base and save again"
        )
    return model


def apply(manifest: Manifest, model: PreTrainedModel) -> PreTrainedModel:
    """Patch a model as a manifest says. Its own scaling is replaced only if the manifest knew of it."""
    return patch_model(
        model,
        manifest.make(),
        original_max_position_embeddings=manifest.original_max_position_embeddings,
        layer_types=manifest.layer_types,
        part=manifest.part or "both",
        replace="rope_parameters" in manifest.unpatched
        and text_config(model).rope_parameters == manifest.unpatched["rope_parameters"],
    )


def load_adapter(
    directory: Path, base_model: nn.Module | None, kwargs: dict[str, Any]
) -> nn.Module:
    """A PEFT adapter on its base, patched as its sidecar says."""
    require_package("peft", "train", f"the adapter {directory}")
    from peft import PeftModel, load_peft_weights

    manifest = read_sidecar(directory)
    # A damaged file has to show before the base is touched, and peft looks online for a missing one.
    read_json(directory / ADAPTER_CONFIG)
    if not any(directory.glob("adapter_model.*")):
        raise CheckpointError(f"{directory} has no adapter_model.safetensors; save it again")
    load_peft_weights(str(directory), device="cpu")
    base = load_base(directory, kwargs) if base_model is None else base_model
    patched_here = patch_base(base, manifest)
    try:
        settle = load_placed if patched_here else require_placed
        settle(pretrained_model(base), directory / PLACED)
        return PeftModel.from_pretrained(base, directory)
    except BaseException:
        if patched_here:
            unpatch_model(base)
        raise


def load_base(directory: Path, kwargs: dict[str, Any]) -> nn.Module:
    """The base that an adapter's own config names, with its patch if it was saved with one."""
    name = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name:
        raise CheckpointError(
            f"{directory / ADAPTER_CONFIG} does not name its base model; pass base_model="
        )
    try:
        config = AutoConfig.from_pretrained(name)
        if hasattr(decoder_config(config), CONFIG_KEY):
            return load_model(Path(name), kwargs)
        model: nn.Module = language_model_class(config).from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        if isinstance(error, RopepatchError):
            raise
        raise CheckpointError(
            f"the base model of {directory}, {name!r}, cannot be loaded; pass base_model= ({error})"
        ) from error
    return model


def patch_base(base: nn.Module, manifest: Manifest) -> bool:
    """Bring a base to the patch of a manifest; says whether it had to be patched.

    Raises BaseMismatchError when the base carries another patch or scaling.
    """
    root = pretrained_model(base)
    found = Manifest.in_config(text_config(root), "the base's config")
    if found is not None:
        if not found.same_patch(manifest):
            raise BaseMismatchError(
                f"the adapter was trained on {manifest.summary()}, but its base has {found.summary()};"
                " load it on an unpatched base"
            )
        if patch_info(base) is None:
            verify_native(root)
        return False
    if manifest.method is None:
        return False
    try:
        apply(manifest, root)
    except AlreadyScaledError as error:
        raise BaseMismatchError(
            f"the adapter was trained on {manifest.summary()}, but its base's own config scales its"
            " positions; load it on the base that it was trained on"
        ) from error
    return True
