"""Models without weights, for what can be said of a run before it starts."""

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedConfig, PreTrainedModel

from ropepatch.adapters.pretrained import language_model_class


def weightless_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config; parameters are on the meta device, buffers have their values."""
    with init_empty_weights(include_buffers=False):
        auto_class = language_model_class(config)
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.tie_weights()  # parameters were replaced one by one
    return model
