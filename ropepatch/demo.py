"""`ropepatch demo`: the bundled checkpoint, extended four times, with numbers before and after."""

import shutil
import time
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ropepatch.bundled_recipes import recipes_directory
from ropepatch.checkpoint import load_pretrained, save_pretrained
from ropepatch.corpus import load_documents
from ropepatch.evals import (
    Check,
    Evaluation,
    Plan,
    compare,
    measure,
    plan_evaluation,
    print_table,
    write_report,
)
from ropepatch.patch import patch_info, patch_model, unpatch_model
from ropepatch.terminal import StageProgress, duration, silence_transformers
from ropepatch.training.expected_time import measuring_seconds, tuning_seconds
from ropepatch.training.recipe import Recipe, load_recipe
from ropepatch.training.runner import train
from ropepatch.verification import verify

_RECIPE = "tiny-llama-yarn-4x.yaml"
#: Fewer steps, a gentler rate and a quarter of the text keep what the demo claims: 0.55 M tokens in all.
_SHORTER = (
    "training.max_steps=90",
    "training.learning_rate=6.0e-4",
    "data.max_tokens=2000000",
    "evaluation=null",
)
_MULTIPLES = (1, 2, 4, 8)  #: of the trained length
_WINDOWS = 50
_PROMPTS = 64
_RELOAD = 2.0  #: seconds
#: Stock angles are float32 and ours exact: at position 1000 that moves logits by 1e-4.
_SAME_LOGITS = 1e-3


def main(directory: Path) -> None:
    """Measure, patch, measure, fine-tune, measure, save, reload; report into `directory`."""
    started = time.perf_counter()
    recipe = _demo_recipe(directory)
    silence_transformers()
    checkpoint = str(recipe.model.path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    plan = _plan(model, tokenizer)

    def stage(model: PreTrainedModel, label: str) -> Evaluation:
        with progress.stage(f"measure: {label}") as done:
            return measure(model, plan, label, done)

    measuring = ("measure", measuring_seconds(model, plan))
    tuning = ("fine-tune", tuning_seconds(recipe, tokenizer, plan))
    expected = [measuring, measuring, tuning, measuring, ("reload", _RELOAD)]
    with StageProgress("demo", expected) as progress:
        stages = [stage(model, "unpatched")]
        assert recipe.patch is not None
        name = f"{recipe.patch.method} ×{recipe.patch.factor:g}"
        patch_model(model, recipe.patch.method, recipe.patch.factor, **recipe.patch.options)
        verify(model)
        stages.append(stage(model, name))
        unpatch_model(model)
        tuned = _fine_tune(recipe, model, progress)
        stages.append(stage(tuned, f"{name} + LoRA"))
        with progress.stage("save, and reload with plain transformers"):
            check = _reload_check(tuned, save_pretrained(tuned, directory / "model", tokenizer))
    seconds = time.perf_counter() - started
    comparisons = [compare(stages[0], stage) for stage in stages[1:]]
    page = write_report(
        stages,
        comparisons,
        directory,
        title="tiny-llama, extended from 256 to 1024 tokens",
        notes=[f"Made by ropepatch demo in {duration(seconds)}, from recipes/{_RECIPE}."],
        checks=[check],
    )
    print_table(stages, comparisons, checks=[check])
    print(f"\n{duration(seconds)}. Report: {page}")


def _fine_tune(recipe: Recipe, model: PreTrainedModel, progress: StageProgress) -> PreTrainedModel:
    """Train the recipe's adapter, and return `model` with it merged."""
    with progress.stage("fine-tune with LoRA") as done:
        result = train(
            recipe,
            lambda step: done(step.step / step.max_steps),
            announce=progress.announce,
        )
    adapted = load_pretrained(result.directory, base_model=model)
    merged: PreTrainedModel = adapted.merge_and_unload()  # type: ignore[operator]
    return merged


def _plan(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Plan:
    """Windows up to 8 times the trained length, and prompts up to the target."""
    trained = int(model.config.max_position_embeddings)
    lengths = [trained * multiple for multiple in _MULTIPLES]
    return plan_evaluation(
        tokenizer,
        load_documents("stdlib", "held_out"),
        lengths=lengths,
        trained_length=trained,
        windows=_WINDOWS,
        prompts=_PROMPTS,
        # Past the target there is nothing to find, and a prompt takes as long as two at the target.
        prompt_lengths=lengths[:-1],
    )


def _demo_recipe(directory: Path) -> Recipe:
    """The bundled recipe, with its result below `directory`, which is emptied of an earlier demo."""
    run = directory / "fine-tune"
    if run.is_dir():
        shutil.rmtree(run)
    file = recipes_directory() / _RECIPE
    path = recipes_directory().parent / str(load_recipe(file).model.path)
    return load_recipe(file, (f"output_dir={run}", f"model.path={path}", *_SHORTER))


@torch.no_grad()
def _reload_check(model: PreTrainedModel, directory: Path) -> Check:
    """Whether what was saved gives the same logits again, in plain transformers and in ropepatch."""
    info = patch_info(model)
    assert info is not None
    ids = torch.arange(info.max_position_embeddings)[None] % model.config.vocab_size
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ours = load_pretrained(directory, dtype=torch.float32)
    logits = model(ids).logits
    by_plain, by_ours = (
        float((logits - it.eval()(ids).logits).abs().max()) for it in (plain, ours)
    )
    return Check(
        question="Does the saved checkpoint give the same logits in plain transformers?",
        passed=by_plain <= _SAME_LOGITS and by_ours == 0.0,
        detail=(
            f"largest difference {by_plain:.0e} over {ids.shape[1]} tokens, from float32 angles "
            f"there; {by_ours:g} with ropepatch.load_pretrained"
        ),
    )
