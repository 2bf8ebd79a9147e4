"""A Trainer that stops at the first loss, gradient or weight that is NaN or infinite."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from ropepatch.errors import NonFiniteError


class FiniteTrainer(Trainer):
    """Raises NonFiniteError before the optimizer uses what is not finite."""

    shared_by = 1  #: processes that have a part of the same sequences each
    batch: int  #: of the optimizer step that is being done, counted from 0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of the next optimizer step."""
        self.batch = 0
        samples: tuple[list[Any], Tensor | int | None] = super().get_batch_samples(
            epoch_iterator, num_batches, device
        )
        return samples

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one batch, whose gradient is added to those before."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not math.isfinite(value := float(loss)):
            batches = self.args.gradient_accumulation_steps
            which = f"batch {self.batch + 1} of {batches}, " if batches > 1 else ""
            raise NonFiniteError(
                f"the loss of step {self.state.global_step + 1} is {value} "
                f"({which}{self._sequences(self.batch, self.batch + 1)})"
            )
        self.batch += 1
        return loss

    def require_finite_weights(self) -> None:
        """Raise NonFiniteError when a trained weight is not finite, so that it is never saved."""
        assert self.model is not None
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(
                    f"the weights of {name} are not finite after step {self.state.global_step}"
                )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        scaler = self.accelerator.scaler
        # fp16: the scaler leaves out a step that overflows, and halves its scale. With a scale below
        # 1 the gradient itself is not finite.
        if scaler is not None and scaler.get_scale() >= 1.0:
            return norm
        # DeepSpeed has none to tell before its first step.
        if norm is not None and not math.isfinite(value := float(norm)):
            batches = self.args.gradient_accumulation_steps
            raise NonFiniteError(
                f"the gradient norm of step {self.state.global_step + 1} is {value} "
                f"({self._sequences(0, batches)})"
            )
        return norm

    def _sequences(self, first: int, end: int) -> str:
        """Which sequences of the data the batches from `first` to before `end` of this step hold."""
        # Each process takes every n-th batch, or each group of those that share their sequences.
        args = self.args
        done = self.state.global_step * args.gradient_accumulation_steps
        groups, group = (n // self.shared_by for n in (args.world_size, args.process_index))
        numbers = [(done + batch) * groups + group for batch in range(first, end)]
        size = args.per_device_train_batch_size
        low, high = numbers[0] * size, (numbers[-1] + 1) * size - 1
        return f"sequence {low}" if low == high else f"sequences {low} to {high}"
