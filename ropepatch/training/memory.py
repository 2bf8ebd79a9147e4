"""The memory of a training step, from a step that is taken without weights."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ropepatch.training.chunked_loss import IGNORED
from ropepatch.training.live_bytes import KINDS, OF_TOKENS, Count, Kinds, LiveBytes
from ropepatch.training.quantization import bytes_saved
from ropepatch.training.sequences import stage_ends
from ropepatch.training.trainer import RunTrainer

_UNITS = {10**9: "GB", 10**6: "MB", 10**3: "kB", 1: "B"}

Sample = dict[str, Tensor]

_LONGEST = 1 << 15  #: tokens; a step of longer sequences takes long even where nothing is computed
_LENGTHS = (8191, 16381)  #: primes, beyond the usual sliding windows


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


def in_units(count: int) -> str:
    """`1.23 GB` or `45.6 kB`, for so many bytes."""
    unit = next(unit for unit in _UNITS if count >= unit or unit == 1)
    return f"{count / unit:.3g} {_UNITS[unit]}"


def longest_batch(trainer: RunTrainer) -> list[Sample]:
    """The first batch of the stage that has the longest sequences."""
    recipe, data = trainer.run.recipe, trainer.train_dataset
    assert data is not None
    starts = [0, *stage_ends(recipe)]
    start = starts[recipe.lengths.index(max(recipe.lengths))]
    return [data[start + index] for index in range(recipe.training.per_device_batch_size)]


def estimate_memory(trainer: RunTrainer, samples: Sequence[Sample]) -> MemoryEstimate:
    """Of a step of a Trainer whose model has no weights, once its optimizer has its state.

    The step is taken with fake parameters: of a batch of `samples`, or, where they are long, of
    two shorter lengths. What kernels need inside of them is not counted, nor what a process takes
    before it holds a tensor. The Trainer is of no use afterwards.
    """
    live = LiveBytes(trainer.trained.config.get_text_config().vocab_size)
    live.make_parameters_fake(trainer.trained)
    _enable_checkpointing(trainer)
    trainer.trained.train()
    with live:
        _make_optimizer_state(trainer, live)
    length = len(samples[0]["input_ids"])
    if length <= _LONGEST:
        counts = _take_step(trainer, live, samples, length, KINDS)
    else:
        counts = _of_long_step(trainer, live, samples, length)
    found = max(counts, key=lambda count: sum(count.values()))
    if trainer.run.recipe.model.quantization is not None:
        found["weights"] -= bytes_saved(trainer.trained)
    found["activations"] += found.pop("square")
    return MemoryEstimate(**found)


def cropped(samples: Sequence[Sample], length: int) -> list[Sample]:
    """Samples with their first tokens only."""
    return [{name: values[:length] for name, values in sample.items()} for sample in samples]


def _of_long_step(
    trainer: RunTrainer, live: LiveBytes, samples: Sequence[Sample], length: int
) -> list[Count]:
    """Extrapolated: a token more takes so much more, and what is square grows with the square."""
    shifted = trainer.run.recipe.training.shifted_attention
    short, long = _LENGTHS if shifted is None else _whole_groups(shifted.group)
    steps = [
        _take_step(trainer, live, cropped(samples, shorter), shorter, OF_TOKENS)
        for shorter in (short, long)
    ]
    longer = (length - short) / (long - short)
    counts = []
    for first, second in zip(*steps, strict=True):
        growing: Count = {
            kind: round(first[kind] + longer * (second[kind] - first[kind])) for kind in OF_TOKENS
        }
        if shifted is None:  # within groups nothing is square
            growing["square"] = round(second["square"] * (length / long) ** 2)
        counts.append(second | growing)
    # With few activations, most is needed when all gradients are there.
    gradients = sum(each.nbytes for each in trainer.trained.parameters() if each.requires_grad)
    return [*counts, counts[0] | {"gradients": gradients} | dict.fromkeys(OF_TOKENS, 0)]


def _whole_groups(group: int) -> tuple[int, int]:
    """Two lengths of a few groups each, about as long as other models are tried with."""
    groups = max(_LENGTHS[0] // group, 1) + 1
    return groups * group, (groups + 1) * group


def _take_step(
    trainer: RunTrainer, live: LiveBytes, samples: Sequence[Sample], length: int, kinds: Kinds
) -> list[Count]:
    """The peaks of these kinds in a forward pass and in a backward pass; there is no update."""
    batch = trainer.data_collator([*samples])
    forward, backward = {}, {}
    # A second micro-batch of a step finds the gradients of the first.
    for _ in range(min(trainer.args.gradient_accumulation_steps, 2)):
        live.watch(length, kinds)
        with live, _autocast(trainer):
            scored = (batch["labels"] != IGNORED).sum()
            loss = trainer.compute_loss(trainer.trained, batch, num_items_in_batch=scored)
        assert isinstance(loss, Tensor)  # without return_outputs
        forward = live.peak
        live.watch(length, kinds)
        with live:
            loss.backward()
        del loss
        backward = live.peak
    trainer.trained.zero_grad()
    return [forward, backward]


def _autocast(trainer: RunTrainer) -> torch.autocast:
    """As the Trainer's in a step, which runs on the meta device here."""
    dtype = torch.float16 if trainer.args.fp16 else torch.bfloat16
    return torch.autocast("cpu", dtype, enabled=trainer.args.fp16 or trainer.args.bf16)


def _enable_checkpointing(trainer: RunTrainer) -> None:
    """As the Trainer does it when it starts."""
    if trainer.args.activation_checkpointing:
        given = trainer.args.activation_checkpointing_kwargs
        options: dict[str, Any] = {**given} if isinstance(given, dict) else {}
        offload = options.pop("offload")
        trainer.trained.activation_checkpointing_enable(
            activation_checkpointing_kwargs=options, offload=offload
        )


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
