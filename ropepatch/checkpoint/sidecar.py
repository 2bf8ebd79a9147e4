"""The sidecar of an adapter: its patch as JSON, since an adapter has no config that could hold it."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from ropepatch.adapters.pretrained import pretrained_model, text_config
from ropepatch.errors import CheckpointError, SidecarError
from ropepatch.manifest import Manifest

SIDECAR = "ropepatch.json"
ADAPTER_CONFIG = "adapter_config.json"


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
