"""The evaluation that ends a run: the base, the base with the patch alone, and the trained model."""

import dataclasses
from collections.abc import Callable

import torch
import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase

from ropepatch.adapters.pretrained import in_fast_dtype, pretrained_model, trained_length
from ropepatch.checkpoint import load_pretrained
from ropepatch.checkpoint.opening import open_model, open_tokenizer
from ropepatch.errors import ConfigError, DataError
from ropepatch.evals import Evaluation, Plan, compare, measure, plan_evaluation, write_report
from ropepatch.manifest import PatchInfo
from ropepatch.patch import patch_info, patched, unpatch_model
from ropepatch.training.models import (
    apply_patch,
    base_model,
    fit_arguments,
    patch_arguments,
)
from ropepatch.training.recipe import Recipe, recipe_tree
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.sections import EvaluationRecipe, PatchRecipe
from ropepatch.training.sequences import held_out_documents

StageSink = Callable[
    [str, float], None
]  #: told what is measured, and the share of all that is done

_TARGETS = 64  #: tokens at the end of each window that are scored at every length
_SETTINGS = "settings.yaml"


def is_evaluated(run: RunDirectory) -> bool:
    """Whether nothing is to be measured, or all was, by the same settings."""
    settings = run.evaluation / _SETTINGS
    if run.recipe.evaluation is None:
        return True
    return settings.exists() and settings.read_text(encoding="utf-8") == _settings(run.recipe)


def plan_measurement(recipe: Recipe, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Plan:
    """What is read of the held-out text, for a model that carries the patch of the recipe.

    Raises ConfigError where that cannot be measured.
    """
    evaluation = recipe.evaluation or EvaluationRecipe()
    trained, lengths = evaluation_lengths(recipe, model)
    targets = [_TARGETS, lengths[0] // 2]
    if recipe.data.target_length is not None:  # a decoder was not trained to predict more at a time
        targets.append(recipe.data.target_length)
    try:
        return plan_evaluation(
            tokenizer,
            held_out_documents(recipe),
            lengths=lengths,
            trained_length=trained,
            targets=min(targets),
            windows=evaluation.windows,
            prompts=evaluation.prompts,
        )
    except (ConfigError, DataError) as error:
        raise ConfigError(
            f"evaluation: {error}; change evaluation.lengths, .windows, .prompts or .source, or "
            "set evaluation: null to measure nothing"
        ) from error


def evaluation_lengths(recipe: Recipe, model: nn.Module) -> tuple[int, list[int]]:
    """The trained length, and the window lengths to measure, ascending, in tokens."""
    evaluation = recipe.evaluation or EvaluationRecipe()
    info = patch_info(model)
    if info is not None:
        trained = info.original_max_position_embeddings
        # The model carries the patch of the first stage; what comes out is measured.
        factor = info.factor if recipe.final_patch is None else recipe.final_patch.factor
        targets = [round(each * trained) for each in (factor, *evaluation.factors)]
    else:
        length = recipe.data.length
        trained = min(trained_length(pretrained_model(model)) or length, length)
        targets = [length]
    if evaluation.lengths is not None:
        return trained, sorted(set(evaluation.lengths))
    longest = max(2 * trained, *targets)
    doubled = (trained << power for power in range(longest.bit_length()))
    return trained, [*(length for length in doubled if length < longest), longest]


def evaluate_run(run: RunDirectory, tell: StageSink | None = None) -> tuple[Evaluation, ...]:
    """Measure what a finished run started from and what it came to; the report goes beside it."""
    stages = _Measurement(run, tell or (lambda label, share: None)).stages()
    with run.publish(run.evaluation.name) as staging:
        directory = staging / run.evaluation.name
        write_report(
            stages,
            [compare(stages[0], stage) for stage in stages[1:]],
            directory,
            title=f"{run.path.name}, before and after",
        )
        (directory / _SETTINGS).write_text(_settings(run.recipe), encoding="utf-8")
    return tuple(stages)


class _Measurement:
    """One model after the other, measured by one plan."""

    def __init__(self, run: RunDirectory, tell: StageSink) -> None:
        self.run = run
        self.recipe = recipe = run.recipe
        self.tell = tell
        self.tokenizer = open_tokenizer(str(run.result))
        self.factors = [] if recipe.evaluation is None else recipe.evaluation.factors
        self.plan: Plan | None = None
        self.done = 0
        before = 0 if recipe.model.path is None else 1 + (recipe.patch is not None)
        self.count = before + 1 + len(self.factors)

    def stages(self) -> list[Evaluation]:
        """All stages; the trained model, which the report's answers are about, comes last."""
        base = None
        before: list[Evaluation] = []
        if self.recipe.model.path is not None:
            base = _on_device(base_model(self.recipe.model, self.tokenizer))
            before = self._before(base)
        adapter = self.recipe.adapter
        if adapter is not None and not adapter.merge:
            trained = load_pretrained(self.run.result, base_model=base)
        else:
            del base  # a model like it takes its place
            trained = _on_device(open_model(str(self.run.result)))
        return before + self._after(trained)

    def _before(self, base: nn.Module) -> list[Evaluation]:
        patch = self.recipe.final_patch
        if patch is None:
            return [self._measure(base, "before training")]
        # First with the patch, which says how long the windows are.
        fit = fit_arguments(self.recipe, pretrained_model(base), self.tokenizer)
        with patched(base, **patch_arguments(patch), **fit):
            untrained = self._measure(base, _name(patch, patch.factor))
        own = patch_info(base)
        if own is None:
            return [self._measure(base, "unpatched"), untrained]
        before = self._measure(base, f"base, {_name(own, own.factor)}")
        unpatch_model(base)  # an adapter brings the patch that took its place
        return [before, untrained]

    def _after(self, trained: nn.Module) -> list[Evaluation]:
        patch = self.recipe.final_patch
        if patch is None:
            return [self._measure(trained, "trained")]
        label = f"{_name(patch, patch.factor)}, trained"
        after = self._measure(trained, label)
        others = []
        for factor in self.factors:
            apply_patch(trained, dataclasses.replace(patch, factor=factor, replace=True))
            label = f"{_name(patch, factor)}, trained at ×{patch.factor:g}"
            others.append(self._measure(trained, label))
        return [*others, after]

    def _measure(self, model: nn.Module, label: str) -> Evaluation:
        if self.plan is None:
            self.plan = plan_measurement(self.recipe, model, self.tokenizer)
        done = self.done
        self.done += 1
        return measure(
            pretrained_model(model),
            self.plan,
            label,
            lambda share: self.tell(label, (done + share) / self.count),
        )


def _name(patch: PatchRecipe | PatchInfo, factor: float) -> str:
    part = "" if patch.part in (None, "both") else f", {patch.part} only"
    return f"{patch.method} ×{factor:g}{part}"


def _on_device(model: nn.Module) -> nn.Module:
    quantized_is_there = next(model.parameters()).device.type != "cpu"
    if not torch.accelerator.is_available() or quantized_is_there:
        return in_fast_dtype(model)
    return model.to(torch.accelerator.current_accelerator())


def _settings(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe_tree(recipe)["evaluation"], sort_keys=False, allow_unicode=True)
