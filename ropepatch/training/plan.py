"""What a run would be: everything that its start would refuse, its steps, tokens, parameters and memory."""

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from ropepatch.precision import PrecisionChoice
from ropepatch.terminal import quiet_transformers
from ropepatch.training.memory import MemoryEstimate, estimate_memory, in_units, longest_batch
from ropepatch.training.recipe import Recipe, recipe_yaml
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.run_precision import planned_precision, with_precision
from ropepatch.training.runner import check_launch, prepare
from ropepatch.training.sequences import tokens_per_step


@dataclass(frozen=True)
class Plan:
    """A recipe in numbers, those of one device."""

    tokens_per_step: int
    steps: int
    trainable_parameters: int
    parameters: int
    precision: PrecisionChoice
    memory: MemoryEstimate

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.steps * self.tokens_per_step


def plan_run(recipe: Recipe) -> Plan:
    """The plan of a recipe, without weights; raises what starting the run would raise."""
    check_launch(recipe)
    RunDirectory(recipe).check()
    precision = planned_precision(recipe)
    recipe = with_precision(recipe, precision.precision)
    # The Trainer makes its directory when it is made.
    with quiet_transformers(), tempfile.TemporaryDirectory() as elsewhere:
        run = RunDirectory(dataclasses.replace(recipe, output_dir=elsewhere))
        trainer = prepare(run, weights=False)
        parameters = [*trainer.trained.parameters()]
        return Plan(
            tokens_per_step=tokens_per_step(recipe),
            steps=recipe.training.max_steps,
            trainable_parameters=sum(each.numel() for each in parameters if each.requires_grad),
            parameters=sum(each.numel() for each in parameters),
            precision=precision,
            memory=estimate_memory(trainer, longest_batch(trainer)),
        )


def plan_text(recipe: Recipe) -> str:
    """The resolved recipe as a YAML file, with its plan in comments."""
    rows = [*_rows(plan_run(recipe))]
    if recipe.distributed.fsdp:
        rows.append(
            "weights, gradients and optimizer are counted whole; FSDP leaves each device a part"
        )
    return "\n".join([recipe_yaml(recipe), *(f"# {row}" for row in rows)])


def _rows(plan: Plan) -> Iterator[str]:
    rows = {
        "tokens per step": f"{plan.tokens_per_step:,}",
        "steps": f"{plan.steps:,}",
        "tokens": f"{plan.tokens:,}",
        "trainable parameters": f"{plan.trainable_parameters:,}",
        "of all parameters": f"{plan.parameters:,}",
        **{name: in_units(count) for name, count in plan.memory.parts.items()},
        "peak of memory, estimated": in_units(plan.memory.peak),
    }
    wide, long = max(map(len, rows)), max(map(len, rows.values()))
    for name, text in rows.items():
        yield f"{name:<{wide}}  {text:>{long}}"
    yield f"{'precision':<{wide}}  {plan.precision}"
