"""Expected seconds of a measurement and of a fine-tune on this machine, from trying a part of each."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropepatch.evals import Plan
from ropepatch.evals.losses import work
from ropepatch.evals.runner import work_left
from ropepatch.evals.samples import Samples
from ropepatch.precision import DTYPES
from ropepatch.training.models import load_model
from ropepatch.training.recipe import Recipe
from ropepatch.training.run_precision import run_precision


def measuring_seconds(model: PreTrainedModel, plan: Plan) -> float:
    """Seconds that a plan takes a model, from a forward pass over its longest window."""
    window = plan.windows.prefix(plan.protocol.lengths[-1])[:1]

    @torch.no_grad()
    def read() -> None:
        model(input_ids=window, use_cache=False, logits_to_keep=1)

    read()  # the first call also prepares kernels and memory
    return _seconds(read) / work(*window.shape) * work_left(plan, Samples(""))


def tuning_seconds(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> float:
    """Seconds that a recipe trains on a CPU, from passes over one batch of held-out text."""
    model = load_model(recipe, tokenizer)
    training = recipe.training
    batch = plan.windows.prefix(recipe.data.length)[: training.per_device_batch_size]
    dtype = DTYPES[run_precision(recipe, None).precision]

    def step(ids: Tensor) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    step(batch[:1])  # prepares kernels and memory; the time of one sequence says less of a batch
    return _seconds(lambda: step(batch)) * training.gradient_accumulation * training.max_steps


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
