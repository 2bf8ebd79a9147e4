"""S² attention while a model trains, for every model that looks its attention up by name.

Evaluation attends to everything: LongLoRA (arXiv 2309.12307) trains with less than it is used with.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ropepatch.attention.shifted_sparse import shifted_sparse_attention
from ropepatch.errors import ConfigError

_FULL = "sdpa"
#: What some models hand to their attention and S² has no place for.
_FOREIGN = ("softcap", "s_aux", "position_bias")


class SparseTrainingAttention:
    """What transformers calls in place of its own attention; `group` in tokens."""

    def __init__(self, group: int, shift: bool) -> None:
        self.group = group
        self.shift = shift
        self.full = AttentionInterface()[_FULL]

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The output (batch, length, heads, head_dim), and no weights."""
        if not module.training:
            return self.full(  # type: ignore[no-any-return]
                module,
                query,
                key,
                value,
                attention_mask,
                scaling=scaling,
                dropout=dropout,
                **options,
            )
        self._check(query, key, attention_mask)
        attended = shifted_sparse_attention(
            query, key, value, self.group, shift=self.shift, scale=scaling, dropout=dropout
        )
        return attended.transpose(1, 2).contiguous(), None

    def _check(self, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        length = query.shape[2]
        if mask is not None:
            raise ConfigError(
                "training.shifted_attention is for causal attention without a mask, but this batch "
                "has one (of padding, packed documents or a sliding window); leave either out"
            )
        if key.shape[2] != length or (length > self.group and length % self.group):
            raise ConfigError(
                f"training.shifted_attention needs sequences of whole groups of {self.group} tokens; "
                f"found {length} tokens that see {key.shape[2]}"
            )


def use_sparse_attention(model: PreTrainedModel, group: int, *, shift: bool = True) -> None:
    """Attend within groups while `model` trains. ConfigError if some layer cannot."""
    name = f"ropepatch_s2_{group}_{'shifted' if shift else 'local'}"
    before = model.config._attn_implementation
    AttentionMaskInterface.register(name, AttentionMaskInterface()[_FULL])
    AttentionInterface.register(name, SparseTrainingAttention(group, shift))
    model.set_attn_implementation(name)
    try:
        _check_layers(model, name)
    except BaseException:
        model.set_attn_implementation(before)
        raise


def _check_layers(model: PreTrainedModel, name: str) -> None:
    """Raise ConfigError unless all layers call the attention of that name, and can be served."""
    attention = AttentionInterface()[name]
    causal: list[bool] = []

    def note(module: nn.Module, *tensors: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        foreign = [option for option in _FOREIGN if options.get(option) is not None]
        if foreign:
            raise ConfigError(
                f"training.shifted_attention has no place for the {', '.join(foreign)} that "
                f"{type(model).__name__} hands to its attention; leave it out"
            )
        is_causal = options.get("is_causal")
        causal.append(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        return attention(module, *tensors, **options)  # type: ignore[no-any-return]

    was_training = model.training
    AttentionInterface.register(name, note)
    try:
        with torch.no_grad():
            model.eval()(torch.ones(1, 2, dtype=torch.long, device=model.device))
    finally:
        model.train(was_training)
        AttentionInterface.register(name, attention)
    layers = model.config.get_text_config().num_hidden_layers
    if sum(causal) != layers:
        raise ConfigError(
            f"training.shifted_attention reaches {sum(causal)} of {layers} layers of "
            f"{type(model).__name__}, which computes attention in its own way; leave it out"
        )
