"""The model that lm-evaluation-harness runs: patched, and never truncated."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from ropepatch.adapters.pretrained import in_fast_dtype, pretrained_model
from ropepatch.checkpoint.opening import open_model, open_tokenizer
from ropepatch.errors import ConfigError, DataError
from ropepatch.patch import patch_info, patch_model
from ropepatch.verification import verify

NAME = "ropepatch"


@register_model(NAME)
class PatchedLM(HFLM):  # type: ignore[misc]
    """HFLM of a checkpoint that ropepatch opens, and patches if asked to.

    HFLM itself drops the start of a request that is too long, and tells only its log.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        method: str | None = None,
        factor: float | None = None,
        target_length: int | None = None,
        method_options: Mapping[str, Any] | None = None,
        device: str | None = None,
        dtype: str = "auto",
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        model = open_model(pretrained, _dtype(dtype)).to(_device(device))
        if dtype == "auto":
            model = in_fast_dtype(model)
        if method is not None:
            patch_model(
                model, method, factor, target_length=target_length, **(method_options or {})
            )
        if (info := patch_info(model)) is not None:
            verify(model)
            # Configs of length-dependent methods keep the trained length.
            max_length = max_length or info.max_position_embeddings
        super().__init__(
            pretrained=pretrained_model(model),
            tokenizer=open_tokenizer(pretrained),
            max_length=max_length,
            **settings,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], *args: Any, **kwargs: Any
    ) -> Any:
        # The last token is only predicted, never read.
        lengths = [len(context) + len(answer) - 1 for _, context, answer in requests]
        self._refuse_longer(max(lengths, default=0), self.max_length)
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def tok_batch_encode(
        self, strings: list[str], *args: Any, left_truncate_len: int | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As HFLM's, but raises DataError where that truncates."""
        input_ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
        self._refuse_longer(input_ids.shape[1], left_truncate_len or self.max_length)
        return input_ids, mask

    def _refuse_longer(self, length: int, limit: int) -> None:
        if length > limit:
            raise DataError(
                f"a request of {length} tokens does not fit into {limit} of the model's "
                f"{self.max_length}, and lm_eval would drop its start; ask for shorter prompts or "
                "fewer generated tokens, or patch with a larger --factor"
            )


def _dtype(name: str) -> torch.dtype | Literal["auto"]:
    found = getattr(torch, name, None)
    if name == "auto":
        return "auto"
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"dtype={name!r} is none of torch's; use auto, float32 or bfloat16")
    return found


def _device(name: str | None) -> str:
    """The device that was asked for; lm_eval asks for CUDA where nobody did."""
    wanted = torch.device(name or "cuda")
    return str(wanted) if wanted.type != "cuda" or torch.cuda.is_available() else "cpu"
