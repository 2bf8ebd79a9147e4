"""Checkpoints on disk and on the Hub: opened, saved and loaded with their patch.

Nothing here needs an extra, except for adapters, which need peft.
"""

from ropepatch.checkpoint.load import load_model, load_pretrained
from ropepatch.checkpoint.save import save_pretrained
from ropepatch.checkpoint.sidecar import (
    ADAPTER_CONFIG,
    SIDECAR,
    read_json,
    read_sidecar,
    write_sidecar,
)

__all__ = [
    "ADAPTER_CONFIG",
    "SIDECAR",
    "load_model",
    "load_pretrained",
    "read_json",
    "read_sidecar",
    "save_pretrained",
    "write_sidecar",
]
