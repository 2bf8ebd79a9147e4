"""The memory of a training step, from a step that is taken without weights."""

from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ropepatch.training.chunked_loss import IGNORED
from ropepatch.training.live_bytes import LiveBytes
from ropepatch.training.quantization import bytes_saved
from ropepatch.training.trainer import RunTrainer


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors on one device, at the moment of a step when they are most."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  #: and what else exists for a moment only
    logits: int  #: with their gradients, and what the loss keeps of them

    @property
    def parts(self) -> dict[str, int]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def peak(self) -> int:
        """Their sum."""
        return sum(self.parts.values())


def in_megabytes(count: int) -> str:
    """`1,234 MB` for so many bytes."""
    return f"{count / 1e6:,.0f} MB"


def estimate_memory(trainer: RunTrainer) -> MemoryEstimate:
    """Of a step of a Trainer whose model has no weights, once its optimizer has its state.

    The step is taken with fake parameters. What kernels need inside of them is not counted, nor what
    a process takes before it holds a tensor. The Trainer is of no use afterwards.
    """
    live = LiveBytes(trainer.trained.config.get_text_config().vocab_size)
    live.make_parameters_fake(trainer.trained)
    _enable_checkpointing(trainer)
    micro_batches = _micro_batches(trainer)
    trainer.trained.train()
    with live:
        _make_optimizer_state(trainer, live)
        for batch in micro_batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
                scored = (batch["labels"] != IGNORED).sum()
                loss = trainer.compute_loss(trainer.trained, batch, num_items_in_batch=scored)
            assert isinstance(loss, Tensor)  # without return_outputs
            loss.backward()
            del loss
    if trainer.run.recipe.model.quantization is not None:
        live.peak["weights"] -= bytes_saved(trainer.trained)
    return MemoryEstimate(**live.peak)


def _enable_checkpointing(trainer: RunTrainer) -> None:
    """As the Trainer does it when it starts."""
    if trainer.args.activation_checkpointing:
        given = trainer.args.activation_checkpointing_kwargs
        options: dict[str, Any] = {**given} if isinstance(given, dict) else {}
        offload = options.pop("offload")
        trainer.trained.activation_checkpointing_enable(
            activation_checkpointing_kwargs=options, offload=offload
        )


def _micro_batches(trainer: RunTrainer) -> list[dict[str, Any]]:
    """The first of a run; a second one, if there is one in a step, finds gradients of the first."""
    size = trainer.args.per_device_train_batch_size
    batch = trainer.data_collator([*islice(trainer.samples, size)])
    return [batch] * min(trainer.args.gradient_accumulation_steps, 2)


def _make_optimizer_state(trainer: RunTrainer, live: LiveBytes) -> None:
    """What the first step leaves behind."""
    optimizer = trainer.create_optimizer()
    for parameter in trainer.trained.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        live.count(state.values(), "optimizer")
    live.forget_peak()
