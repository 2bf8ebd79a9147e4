"""What runs leave behind, read for comparison, and a callback that stops them."""

import json

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from ropepatch.training.run_directory import RunDirectory


class StopAt(TrainerCallback):
    """Raises after an optimizer step, as a signal would."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step = step
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise self.error


def weights(directory):
    return load_file(next(directory.glob("*model.safetensors")))


def same_weights(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def losses(recipe):
    lines = RunDirectory(recipe).metrics.read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]
