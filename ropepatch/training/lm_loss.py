"""The loss of a causal language model in chunks of tokens, whatever its head does to logits."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput  # type: ignore[attr-defined]

from ropepatch.attention.lengths import named_arguments
from ropepatch.errors import ConfigError
from ropepatch.surgery import AttributeChange
from ropepatch.training.chunked_loss import IGNORED, chunked_cross_entropy

_LOGITS = 1 << 23  # that exist at a time, on a CPU
_LOGITS_ELSEWHERE = 1 << 26  # accelerators need more at once to be fast
_CLOSE = 1e-4  # in parts of the largest
_TOKENS = 8  # for which the loss is compared with the model's own


class ChunkedLossForward:
    """Stands in for the forward of one model: in training with labels, a loss and no logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        # The Trainer and `generate` look up what a model can be given.
        self.__signature__ = inspect.signature(model.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("labels") is None or not self.model.training:
            return type(self.model).forward(self.model, *args, **kwargs)
        arguments = named_arguments(self.model, args, kwargs)
        return ModelOutput(loss=self.loss(**arguments))

    def loss(
        self,
        labels: Tensor,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Cross entropy of every next token, as transformers' ForCausalLMLoss defines it."""
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        hidden = self.model.get_decoder()(**arguments)[0]
        head = self.model.get_output_embeddings()
        if isinstance(head, FSDPModule):
            head.unshard()  # until FSDP adds up its gradient, at the end of the backward pass
        trained = [each for each in head.parameters() if each.requires_grad]
        logits = _LOGITS_ELSEWHERE if torch.accelerator.is_available() else _LOGITS
        return chunked_cross_entropy(
            hidden,
            shift_labels,
            self.logits,
            trained,
            num_items=num_items_in_batch,
            chunk=max(logits // self.model.config.get_text_config().vocab_size, 1),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """What the model makes of hidden states."""
        config = self.model.config.get_text_config()
        # Not by a call: FSDP's hooks would take the gradients of a chunk for those of the step.
        logits: Tensor = self.model.get_output_embeddings().forward(hidden)
        logits = logits * getattr(config, "logit_scale", 1.0)  # Cohere
        logits = logits / getattr(config, "logits_scaling", 1.0)  # Granite
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
        return logits if cap is None else torch.tanh(logits / cap) * cap


def use_chunked_loss(model: PreTrainedModel) -> None:
    """Train this model with the chunked loss. Raises ConfigError where its own is another one."""
    forward = ChunkedLossForward(model)
    what = type(model).__name__
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise ConfigError(
            f"training.chunked_loss is for causal language models, not {what}; leave it out"
        )
    ids = torch.arange(_TOKENS)[None]
    with torch.no_grad(), _stand_ins(model) as hidden:
        own = model(input_ids=ids, labels=ids)
        logits, loss = forward.logits(hidden), forward.loss(ids, input_ids=ids)
    if not (_fits(logits, own.logits) and _fits(loss, own.loss)):
        raise ConfigError(
            f"training.chunked_loss does not know how {what} makes its loss: it makes {float(loss):.4f} "
            f"of tokens of which the model makes {float(own.loss):.4f}, and of its logits up to "
            f"{float(logits.max()):.4f} for {float(own.logits.max()):.4f}; leave it out"
        )
    AttributeChange(model, "forward", forward).apply()


class _States(tuple[Tensor, ...]):
    """A decoder's output that has hidden states and nothing else."""

    def __getattr__(self, name: str) -> Tensor | None:
        return self[0] if name == "last_hidden_state" else None


class _RepeatedHead(nn.Linear):
    """A head of as many words as another, of which only a few are different."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, _TOKENS)
        self.vocab_size = head.out_features
        nn.init.normal_(self.weight)  # logits that a softcap would change

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden)[..., torch.arange(self.vocab_size) % self.out_features]


@contextmanager
def _stand_ins(model: PreTrainedModel) -> Iterator[Tensor]:
    """Within the body, random hidden states for those of the decoder, and a head with a few words.

    What a model makes of them shows without its weights, which may be many, or not there.
    """
    head = model.get_output_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        few = _RepeatedHead(head)
        hidden = torch.randn(1, _TOKENS, head.in_features)
    decoder = AttributeChange(model.get_decoder(), "forward", lambda *_, **__: _States([hidden]))
    decoder.apply()
    model.set_output_embeddings(few)
    try:
        yield hidden
    finally:
        model.set_output_embeddings(head)
        decoder.revert()


def _fits(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _CLOSE * expected.abs().max())
