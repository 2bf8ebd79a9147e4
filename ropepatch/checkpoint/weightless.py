"""Models without weights, for what can be said of a run before it starts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedConfig, PreTrainedModel

from ropepatch.adapters.pretrained import language_model_class


def weightless_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model of a config; parameters are on the meta device, buffers have their values."""
    with _parameters_on_meta():
        auto_class = language_model_class(config)
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.tie_weights()  # parameters were replaced one by one
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move each parameter to the meta device when a module registers it, before it gets a value."""
    # torch replaces the parameter by what the hook returns, but types hooks as if they returned nothing.
    hook = register_module_parameter_registration_hook(_empty_parameter)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _empty_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
    empty = torch.empty_like(parameter, device="meta")
    return nn.Parameter(empty, requires_grad=parameter.requires_grad)
