"""Saving and loading patched models and adapters, so that no patch is ever lost without a word.

A full checkpoint says all in its config: `rope_parameters` that plain transformers understands (or, for
length-dependent methods, refuses), and the manifest beside them. An adapter has no config: its manifest
lies in a sidecar, `ropepatch.json`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ropepatch.adapters.plan import NOTICE, REFUSALS
from ropepatch.adapters.pretrained import (
    decoder_config,
    language_model_class,
    pretrained_model,
    text_config,
    trained_length,
)
from ropepatch.errors import (
    AlreadyScaledError,
    BaseMismatchError,
    CheckpointError,
    RopepatchError,
    SidecarError,
)
from ropepatch.manifest import CONFIG_KEY, Manifest
from ropepatch.patch import patch_info, patch_model, unpatch_model
from ropepatch.placed_parameters import PLACED, load_placed, require_placed, save_placed, unreported
from ropepatch.verification import require_intact, verify_native
from ropepatch.whole_files import replaced_directory

SIDECAR = "ropepatch.json"
ADAPTER_CONFIG = "adapter_config.json"
# What tells which model a directory holds, or is one; all of it goes when another is saved there.
FULL_MODEL = ("config.json", "generation_config.json", "model*.safetensors*", "pytorch_model*")
ADAPTER = ("adapter_*", SIDECAR, PLACED)


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """Save a model or PEFT adapter with its patch, and return the directory. Atomic.

    A static patch is written so that plain transformers gives the same logits; a length-dependent one so that
    plain transformers refuses it. The tokenizer's `model_max_length` follows the new length. `state_dict` has
    the whole weights of a model that itself has a part of them, as under FSDP. Raises PatchVerificationError
    when the patch is not live, CheckpointError when the directory cannot be written; what was there before is
    then still whole.
    """
    root = pretrained_model(model)
    if patch_info(model) is not None:
        require_intact(model)
    is_adapter = hasattr(model, "peft_config")
    require_same_kind(Path(directory), is_adapter)
    with replaced_directory(Path(directory), instead_of=(*FULL_MODEL, *ADAPTER)) as written:
        if is_adapter:
            save_adapter(model, written, state_dict)
        else:
            root.save_pretrained(written, state_dict=state_dict)
        if tokenizer is not None:
            save_tokenizer(tokenizer, written, trained_length(root))
    return Path(directory)


def require_same_kind(directory: Path, is_adapter: bool) -> None:
    """Raise CheckpointError when an adapter would take the place of a full model, or the reverse."""
    there = FULL_MODEL if is_adapter else ADAPTER
    if directory.is_dir() and any(any(directory.glob(pattern)) for pattern in there):
        kinds = ("a full model", "an adapter") if is_adapter else ("an adapter", "a full model")
        raise CheckpointError(
            f"{directory} holds {kinds[0]}, which {kinds[1]} saved there would replace; save to another"
            " directory"
        )


def save_adapter(model: Any, directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """A PEFT adapter with its sidecar. A local base is named by its full path, to be found from anywhere."""
    configs = list(model.peft_config.values())
    names = [config.base_model_name_or_path for config in configs]
    for config, name in zip(configs, names, strict=True):
        if name and Path(name).is_dir():
            config.base_model_name_or_path = str(Path(name).resolve())
    try:
        model.save_pretrained(directory, state_dict=state_dict)
    finally:
        for config, name in zip(configs, names, strict=True):
            config.base_model_name_or_path = name
    write_sidecar(model, directory)
    save_placed(pretrained_model(model), directory)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path, length: int | None) -> None:
    """Save a tokenizer that says how long its model's input may be, and leave the object as it is."""
    before = tokenizer.model_max_length
    tokenizer.model_max_length = before if length is None else length
    try:
        tokenizer.save_pretrained(directory)
    finally:
        tokenizer.model_max_length = before


def write_sidecar(model: nn.Module, directory: Path) -> None:
    """Write the manifest of the model's patch, or that there is none, beside an adapter."""
    manifest = Manifest.in_config(text_config(pretrained_model(model))) or Manifest(method=None)
    text = json.dumps(manifest.to_json(), indent=2)
    (directory / SIDECAR).write_text(text + "\n", encoding="utf-8")


def read_sidecar(directory: Path) -> Manifest:
    """The manifest beside an adapter. Raises SidecarError when it is missing or damaged."""
    path = directory / SIDECAR
    if not path.exists():
        raise SidecarError(
            f"{directory} has no {SIDECAR}, so the patch that the adapter was trained on is unknown;"
            " load it with peft if it was trained on an unpatched base"
        )
    return Manifest.from_json(read_json(path, SidecarError), str(path))


def read_json(path: Path, error_class: type[CheckpointError] = CheckpointError) -> dict[str, Any]:
    """The JSON object in a file. Raises `error_class` when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a JSON object was expected, not {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise error_class(
            f"{path} cannot be read ({error}); save the model again, or copy the file from the checkpoint"
            " that it came from"
        ) from error
    return content


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
