"""What a run is made of beside its recipe: whether weights and text are those that it started with."""

import json
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from torch import Tensor, uint8

from ropepatch.errors import ConfigError
from ropepatch.training.trainer import RunTrainer
from ropepatch.whole_files import write_whole

_SEQUENCES = 8  #: that stand for all


def require_same_inputs(trainer: RunTrainer, path: Path, *, is_new: bool) -> None:
    """Note in `path` what a new run starts with; raise ConfigError where one goes on with something else."""
    found = _checksums(trainer)
    if is_new or not path.exists():
        write_whole(path, json.dumps(found, indent=2) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in found if found[name] != before.get(name)]
    if changed:
        raise ConfigError(
            f"the {' and '.join(changed)} of this run are not those that it started with; put them "
            f"back to go on, or choose another output_dir ({path} has their checksums)"
        )


def _checksums(trainer: RunTrainer) -> dict[str, int]:
    """Of damage and mix-ups, not of malice."""
    names = (name for name in sorted(dict(trainer.trained.named_parameters())))
    weights = [trainer.trained.get_parameter(name) for name in names if ".lora_" not in name]
    first = islice(iter(trainer.train_dataset), _SEQUENCES)  # type: ignore[arg-type]
    samples = [values for sample in first for values in sample.values()]
    return {"base weights": _checksum(weights), "training sequences": _checksum(samples)}


def _checksum(tensors: Sequence[Tensor]) -> int:
    checksum = 0
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().view(-1).view(uint8)
        checksum = zlib.crc32(flat.numpy().data, checksum)
    return checksum
