"""Parameters that a patch put into a model, in the files of a checkpoint."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.errors import BaseMismatchError, SidecarError
from ropepatch.manifest import Manifest
from ropepatch.surgery import AttributeChange, find_record

PLACED = "ropepatch.safetensors"  #: beside an adapter, whose own file has what it trains only


def placed_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules that a patch put into a model, by the path that they have in it."""
    found = find_record(model)
    if found is None:
        return {}
    paths = {module: path for path, module in model.named_modules()}
    modules = {}
    for change in found[1].changes:
        # What takes the place of a stock module has parameters of its own no more than that had.
        if isinstance(change, AttributeChange) and (module := change.module()) is not None:
            path = paths[change.target]
            modules[f"{path}.{change.attribute}" if path else change.attribute] = module
    return modules


def placed_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """What of them trains, by the names of a full checkpoint, also where PEFT has wrapped it."""
    return {
        f"{path}.{name}": parameter
        for path, module in placed_modules(model).items()
        for name, parameter in module.named_parameters()
    }


def modules_that_train(model: PreTrainedModel) -> list[str]:
    """Paths of the modules among them that have parameters."""
    return [path for path, module in placed_modules(model).items() if [*module.parameters()]]


def save_placed(model: PreTrainedModel, directory: Path) -> None:
    """Write them beside an adapter; nothing where there are none."""
    held = {name: value.detach().cpu() for name, value in placed_parameters(model).items()}
    if held:
        save_file(held, directory / PLACED)


@torch.no_grad()
def load_placed(model: PreTrainedModel, *files: Path) -> None:
    """Give them the values that files hold. Raises SidecarError when one is missing or of another shape."""
    for parameter, value in _with_values(model, files).values():
        parameter.copy_(value)


def require_placed(model: PreTrainedModel, *files: Path) -> None:
    """Raise BaseMismatchError unless they have the values that files hold, but for a cast."""
    other = [
        name
        for name, (parameter, value) in _with_values(model, files).items()
        if not torch.equal(parameter.cpu().to(value.dtype), value)
        and not torch.equal(parameter.cpu(), value.to(parameter.dtype))
    ]
    if other:
        raise BaseMismatchError(
            f"{', '.join(other)}, which the patch put into the base, have other values than the adapter "
            f"was trained on, in {', '.join(map(str, files))}; load it on an unpatched base"
        )


def _with_values(
    model: PreTrainedModel, files: Sequence[Path]
) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Each of them and what files hold for it."""
    wanted = placed_parameters(model)
    found: dict[str, Tensor] = {}
    for file in files if wanted else ():
        if file.is_file():
            with safe_open(file, framework="pt") as tensors:
                held = wanted.keys() & set(tensors.keys())
                found |= {name: tensors.get_tensor(name) for name in held}
    for name, parameter in wanted.items():
        value = found.get(name)
        if value is None or value.shape != parameter.shape:
            there = "missing" if value is None else f"of shape {tuple(value.shape)}"
            raise SidecarError(
                f"{name}, which the patch puts into the model, is {there} in "
                f"{', '.join(map(str, files)) or 'the checkpoint'}; allowed: {tuple(parameter.shape)}; save "
                "the model again with ropepatch.save_pretrained"
            )
    return {name: (parameter, found[name]) for name, parameter in wanted.items()}


@contextmanager
def unreported(manifest: Manifest) -> Iterator[None]:
    """Within the body, transformers does not report weights of the patch, and nothing else, as unexpected."""

    def says_more(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        keys = [line for line in message.splitlines() if line.count("|") > 1][1:]
        ours = [line for line in keys if f"{manifest.method}." in line and "UNEXPECTED" in line]
        return "LOAD REPORT" not in message or keys != ours

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(says_more)
    try:
        yield
    finally:
        logger.removeFilter(says_more)
