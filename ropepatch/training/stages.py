"""Curricula: what changes from one stage of a run to the next, and when."""

import bisect
import dataclasses
from itertools import accumulate
from typing import Any

from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ropepatch.training.models import apply_patch
from ropepatch.training.recipe import Recipe
from ropepatch.training.sections import Stage


class StageCallback(TrainerCallback):
    """Puts the patch of each stage in the place of the one before, on the model that trains."""

    def __init__(self, recipe: Recipe, model: PreTrainedModel) -> None:
        self.recipe = recipe
        self.model = model
        self.ends = [*accumulate(stage.steps for stage in recipe.stages)]
        self.patch = recipe.patch  #: that the model has now

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._use(self.recipe.stages[bisect.bisect(self.ends, state.global_step)])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A run that goes on from its last checkpoint makes no more steps.
        self._use(self.recipe.stages[-1])

    def _use(self, stage: Stage) -> None:
        patch = self.recipe.patch_of(stage)
        if patch is not None and patch != self.patch:
            apply_patch(self.model, dataclasses.replace(patch, replace=True))
            self.patch = patch
