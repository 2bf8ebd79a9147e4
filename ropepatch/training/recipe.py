"""Recipes: YAML files read into typed sections, with every mistake reported at once."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ropepatch.errors import ConfigError, UnknownMethodError
from ropepatch.methods.registry import method_class, replaces
from ropepatch.methods.replacement import ScoreBiasMethod
from ropepatch.methods.xpos import XPos
from ropepatch.training.files import OTHER_NAME, read_recipe_file
from ropepatch.training.mistakes import explain_all, list_mistakes
from ropepatch.training.sections import (
    STRICT,
    DataRecipe,
    DistributedRecipe,
    EvaluationRecipe,
    LoraRecipe,
    ModelRecipe,
    PatchRecipe,
    Stage,
    TrainingRecipe,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One training run: a pretraining from a config, or the extension of a checkpoint."""

    model: ModelRecipe
    training: TrainingRecipe
    output_dir: str
    data: DataRecipe = dataclasses.field(default_factory=DataRecipe)
    patch: PatchRecipe | None = None
    lora: LoraRecipe | None = None
    stages: list[Stage] = dataclasses.field(default_factory=list)  #: see training/stages.py
    distributed: DistributedRecipe = dataclasses.field(default_factory=DistributedRecipe)
    #: before and after; null for none
    evaluation: EvaluationRecipe | None = dataclasses.field(default_factory=EvaluationRecipe)

    def __post_init__(self) -> None:
        if self.lora is not None and self.model.path is None:
            raise ValueError("lora needs model.path: an adapter of random weights is of no use")
        if self.adapter is not None and self.training.embedding_learning_rate is not None:
            raise ValueError("training.embedding_learning_rate is for whole models, not for lora")
        if self.adapter is None and self.model.quantization is not None:
            raise ValueError("model.quantization needs lora: weights of 4 bits cannot be trained")
        if self.model.quantization is not None and self.adapter and self.adapter.merge:
            raise ValueError(
                "lora.merge needs whole weights; model.quantization keeps 4 bits of them"
            )
        if self.patch is not None and self.patch.fit is not None and self.model.path is None:
            raise ValueError("patch.fit needs model.path: random weights have no scores to fit to")
        self._check_stages()
        self._check_distributed()
        for length in self.lengths:
            self.data.check(length)
            if self.training.shifted_attention is not None:
                self.training.shifted_attention.check(length)
        self._check_data()
        self._check_attention()
        if self.evaluation is not None:
            self._check_evaluation(self.evaluation)

    def _check_data(self) -> None:
        dataset = self.data.dataset
        if dataset is not None and dataset.streaming and self.model.path is None:
            raise ValueError(
                "model.config trains a tokenizer on all of the data, which data.dataset.streaming "
                "does not read; use model.path, or leave streaming out"
            )
        if self.data.packing is not None and self.training.shifted_attention is not None:
            raise ValueError(
                "training.shifted_attention knows no borders of documents; leave data.packing out"
            )

    def _check_attention(self) -> None:
        patch, shifted = self.patch, self.training.shifted_attention
        if patch is None or shifted is None:
            return
        if issubclass(method_class(patch.method), ScoreBiasMethod | XPos):
            raise ValueError(
                f"patch.method {patch.method!r} brings its own attention, and training.shifted_attention "
                "would do nothing; leave shifted_attention out, or choose a method that rescales"
            )

    def _check_stages(self) -> None:
        steps = sum(stage.steps for stage in self.stages)
        if self.stages and steps != self.training.max_steps:
            raise ValueError(
                f"the steps of stages add up to {steps}, but training.max_steps is "
                f"{self.training.max_steps}; make them agree"
            )
        for stage in self.stages:
            if self.patch is None and (stage.factor is not None or stage.options):
                raise ValueError("stages change the factor or options of a patch; give patch, too")
            self.patch_of(stage)
        factors = self.evaluation is not None and self.evaluation.factors
        changed = factors or any(stage.factor is not None or stage.options for stage in self.stages)
        if self.patch is not None and changed and replaces(self.patch.method):
            raise ValueError(
                f"stages and evaluation.factors cannot change the patch {self.patch.method!r}: what it "
                "trains would start anew; leave them out"
            )

    def _check_distributed(self) -> None:
        """What training/distributed.py refuses as well, before a model is there to ask."""
        if self.distributed.fsdp and self.adapter is not None and self.adapter.merge:
            raise ValueError(
                "lora.merge needs whole weights, which distributed.fsdp leaves to none"
            )
        if self.distributed.fsdp and self.model.quantization is not None:
            # accelerate's fsdp2_prepare_model ignores them, stored as bytes, and only warns of it.
            raise ValueError(
                "distributed.fsdp does not shard the 4-bit weights of model.quantization: each device "
                "would keep all of them; leave one out"
            )
        if self.distributed.shared_by == 1:
            return
        sharing = "distributed.context_parallel and sequence_parallel"
        # torch deals out two pieces of each sequence to a device, DeepSpeed one.
        rings = self.distributed.context_parallel > 1
        pieces = self.distributed.shared_by * (2 if rings else 1)
        if any(length % pieces for length in self.lengths):
            raise ValueError(f"{sharing}: data.length must be a multiple of {pieces} here")
        if self.data.positions is not None:
            raise ValueError(f"{sharing} drop the mask that data.positions needs; leave one out")
        if self.training.shifted_attention is not None:
            raise ValueError(f"{sharing} bring their own attention; leave shifted_attention out")
        if self.patch is not None and method_class(self.patch.method).length_dependent:
            raise ValueError(
                f"{sharing}: each device would take the length that {self.patch.method!r} scales "
                "by for another; choose a method that scales all lengths alike"
            )

    @property
    def adapter(self) -> LoraRecipe | None:
        """The adapter to train, or None where all weights train."""
        return None if self.lora is None or self.lora.preset == "full" else self.lora

    @property
    def all_stages(self) -> list[Stage]:
        """The stages of the run; a single one where the recipe names none."""
        return self.stages or [Stage(steps=self.training.max_steps)]

    @property
    def lengths(self) -> list[int]:
        """Tokens in a sequence, stage by stage."""
        return [stage.length or self.data.length for stage in self.all_stages]

    def tokens_read(self, stage: Stage) -> int:
        """The longest context of a stage; of an encoder–decoder model that of its encoder."""
        if self.data.positions is not None:
            return self.data.positions.target
        return (stage.length or self.data.length) - (self.data.target_length or 0)

    @property
    def final_patch(self) -> PatchRecipe | None:
        """The patch of the model that comes out."""
        return self.patch_of(self.all_stages[-1])

    def patch_of(self, stage: Stage) -> PatchRecipe | None:
        """The patch during a stage."""
        if self.patch is None:
            return None
        return dataclasses.replace(
            self.patch,
            factor=stage.factor or self.patch.factor,
            options={**self.patch.options, **stage.options},
        )

    def _check_evaluation(self, evaluation: EvaluationRecipe) -> None:
        if evaluation.factors and self.patch is None:
            raise ValueError("evaluation.factors are other factors of patch, which is missing")
        patch = self.final_patch
        if patch is not None and patch.factor in evaluation.factors:
            raise ValueError(
                f"evaluation.factors repeat {patch.factor:g}, which is measured in any case"
            )
        if evaluation.source is None and self.data.held_out:
            return
        own = self.data.dataset.path if self.data.dataset else self.data.source
        if evaluation.source is None and own != "stdlib":
            raise ValueError(
                f"evaluation needs text that is not trained on, and of {own} nothing is kept; set "
                "data.held_out to how many documents to keep for it, give evaluation.source, or "
                "evaluation: null to measure nothing"
            )
        measured = evaluation.source or "stdlib"
        if self._trains_on(own, measured):
            raise ValueError(
                f"evaluation.source ({measured}) is trained on; give other text, or evaluation: null "
                "to measure nothing"
            )

    def _trains_on(self, own: str, measured: str) -> bool:
        """Whether text to measure on (of stdlib, the held-out split) is among that of `data`."""
        if "stdlib" in (own, measured):
            return own == measured and self.data.split == "held_out"
        trained, other = Path(own).resolve(), Path(measured).resolve()
        return other.is_relative_to(trained) or trained.is_relative_to(other)


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe in a YAML file, with `section.key=value` overrides applied."""
    tree = read_recipe_file(path)
    mistakes = [mistake for text in overrides if (mistake := _override(tree, text))]
    if mistakes:
        raise ConfigError(list_mistakes(mistakes, "the overrides", len(mistakes)))
    return parse_recipe(tree, name=str(path))


def parse_recipe(tree: dict[str, Any], *, name: str = "recipe") -> Recipe:
    """A recipe from nested mappings; ConfigError lists all mistakes."""
    try:
        return TypeAdapter(Recipe).validate_python(tree)
    except ValidationError as error:
        lines = explain_all(error.errors(), Recipe, _options_of_method(tree))
        raise ConfigError(list_mistakes(lines, name, error.error_count())) from None


def _options_of_method(tree: dict[str, Any]) -> dict[str, str]:
    """Where options of the patch's method go, by where they are not known."""
    patch = tree.get("patch")
    try:
        kind = method_class(patch.get("method", "yarn") if isinstance(patch, dict) else "yarn")
    except UnknownMethodError:
        return {}
    names = [field.name for field in dataclasses.fields(kind)]
    return {f"patch.{name}": f"patch.options.{name}" for name in names}


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """Plain nested mappings with every default spelled out; `parse_recipe` reads them back."""
    tree: dict[str, Any] = TypeAdapter(Recipe).dump_python(recipe)
    return tree


def recipe_yaml(recipe: Recipe) -> str:
    """`recipe_tree` as the text of a file."""
    return yaml.safe_dump(recipe_tree(recipe), sort_keys=False, allow_unicode=True)


def recipe_differences(old: object, new: object, at: str = "") -> list[str]:
    """Where two trees differ: `training.max_steps: 10 → 20`."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{at}: {_brief(old)} → {_brief(new)}"]
    keys = [*old, *(key for key in new if key not in old)]
    return [
        line
        for key in keys
        for line in recipe_differences(old.get(key), new.get(key), f"{at}.{key}".lstrip("."))
    ]


def _brief(value: object) -> str:
    return "{…}" if isinstance(value, dict) and value else str(value)


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Apply `a.b=value` in place; what was wrong with it, or None."""
    dotted, equals, value = text.partition("=")
    *sections, key = dotted.split(".")
    if not (equals and key and all(sections)):
        return f"{text!r} is not of the form section.key=value"
    for depth, section in enumerate(sections):
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            return f"{text!r}: {'.'.join(sections[: depth + 1])} is a value, not a section"
    try:
        tree[key] = yaml.safe_load(value)
    except yaml.YAMLError:
        return f"{text!r}: {value!r} is not valid YAML"
    tree.pop(OTHER_NAME.get(key, ""), None)
    return None
