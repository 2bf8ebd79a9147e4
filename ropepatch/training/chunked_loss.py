"""Cross entropy of a language model without all of its logits at once.

At long context the logits are most of the memory of a training step: tokens × vocabulary, several
times over. Here they exist for a chunk of tokens at a time; gradients are made with them, in the
forward pass, so that nothing is computed twice. Losses and gradients of the head add up in float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  #: label of a token that is not scored

Head = Callable[[Tensor], Tensor]  # hidden states (n, hidden) → logits (n, vocabulary)


def chunked_cross_entropy(
    hidden: Tensor,
    labels: Tensor,
    head: Head,
    parameters: Sequence[Tensor] = (),
    *,
    num_items: Tensor | int | None = None,
    chunk: int = 256,
) -> Tensor:
    """Σ −log p(label) over scored tokens, over `num_items` (default: their number). float32, ()

    hidden (…, hidden) and labels (…), one for each state: shifted already. `parameters` are those of
    `head` that get gradients, and `chunk` tokens those whose logits exist at a time.
    """
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    if num_items is None:
        num_items = (targets != IGNORED).sum()
    loss: Tensor = _Loss.apply(flat, targets, num_items, head, chunk, *parameters)  # type: ignore[no-untyped-call]
    return loss


class _Loss(torch.autograd.Function):
    """The loss, with gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        num_items: Tensor | int,
        head: Head,
        chunk: int,
        *parameters: Tensor,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden = torch.empty_like(hidden)
        of_head = [torch.zeros_like(each, dtype=torch.float32) for each in parameters]
        for start in range(0, len(hidden), chunk):
            piece = slice(start, start + chunk)
            with torch.enable_grad():
                states = hidden[piece].detach().requires_grad_()
                logits = head(states).float()
                loss = F.cross_entropy(
                    logits, targets[piece], ignore_index=IGNORED, reduction="sum"
                )
                loss = loss / num_items  # here, so that gradients are not rounded once more
            total += loss.detach()
            of_hidden[piece], *parts = torch.autograd.grad(loss, (states, *parameters))
            for whole, part in zip(of_head, parts, strict=True):
                whole += part
        of_head = [each.to(own.dtype) for each, own in zip(of_head, parameters, strict=True)]
        ctx.save_for_backward(of_hidden, *of_head)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_head = (each * upstream[0] for each in ctx.saved_tensors)
        return (of_hidden, None, None, None, None, *of_head)
