"""`generate` for length-dependent methods: one scale for the whole request.

Cached keys keep the rotation with which they were written, so the frequencies of a row must not
change while it grows. They are taken from the longest that the row can become: its prompt plus the
new tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ropepatch.attention.lengths import request_lengths
from ropepatch.errors import CacheError


def refuse_continuous_batching(*_: Any, **__: Any) -> None:
    """Stands in for `model.init_continuous_batching`, and so for `generate_batch`."""
    raise CacheError(
        "continuous batching joins requests of all lengths into one row, and a length-dependent method "
        "scales every row by its length; use generate, or patch with a static method"
    )


class FixedScaleGenerate:
    """Stands in for `model.generate`, on this one model."""

    def __init__(self, model: PreTrainedModel, sites: Sequence[object]) -> None:
        self.model = model
        self.sites = sites  # rotary modules or score biases

    def __call__(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The stock `generate`, with every row's frequencies fixed from the start."""
        lengths = self.request(inputs, generation_config, kwargs)
        with request_lengths(self.sites, lengths):
            stock = type(self.model).generate  # type: ignore[attr-defined]
            return stock(self.model, inputs, generation_config, *args, **kwargs)

    def request(
        self,
        inputs: Tensor | None,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Tokens that each row has at most when the request ends. (batch,)"""
        prompt = inputs
        for name in ("input_ids", "inputs_embeds"):
            prompt = kwargs.get(name) if prompt is None else prompt
        if prompt is None:  # generation from the beginning-of-sequence token
            prompt = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        config, _ = self.model._prepare_generation_config(  # type: ignore[operator]
            generation_config, **kwargs
        )
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = self._mask_by_padding(prompt, config)
        return mask.long().sum(-1) + self._new_tokens(prompt, generation_config, config, kwargs)

    def _new_tokens(
        self,
        prompt: Tensor,
        given: GenerationConfig | None,
        config: GenerationConfig,
        kwargs: dict[str, Any],
    ) -> int:
        if config.max_new_tokens is not None:
            return int(config.max_new_tokens)
        explicit = (
            kwargs.get("max_length"),
            getattr(given, "max_length", None),
            self.model.generation_config.max_length,
        )
        if any(length is not None for length in explicit):
            return max(int(config.max_length) - prompt.shape[1], 0)
        return int(config.max_length)  # a default counts new tokens

    @staticmethod
    def _mask_by_padding(prompt: Tensor, config: GenerationConfig) -> Tensor:
        """What `generate` takes as the mask when it is given none: padding is told from text by id."""
        everything = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        pad, eos = config.pad_token_id, config.eos_token_id
        ends = eos if isinstance(eos, list) else [eos]
        if pad is None or pad in ends or prompt.dim() != 2:
            return everything
        return everything * prompt.ne(pad)
