"""`ropepatch demo`: the bundled checkpoint, extended four times, with numbers before and after."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ropepatch.checkpoint import load_pretrained, save_pretrained
from ropepatch.corpus import load_documents
from ropepatch.errors import CheckpointError
from ropepatch.evals import Check, Evaluation, compare, evaluate, print_table, write_report
from ropepatch.patch import patch_info, patch_model, unpatch_model
from ropepatch.training.recipe import Recipe, load_recipe
from ropepatch.training.runner import train
from ropepatch.verification import verify

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/tiny-llama-yarn-4x.yaml"
MULTIPLES = (1, 2, 4, 8)  #: of the trained length
WINDOWS = 50
PROMPTS = 64
MEASURE, TUNE, RELOAD = 25.0, 110.0, 5.0  #: expected seconds on two cores, for the time left
SAME_LOGITS = (
    1e-3  #: stock angles are float32 and ours exact: at position 1000 that moves logits by 1e-4
)


def main(directory: Path) -> None:
    """Measure, patch, measure, fine-tune, measure, save, reload; report into `directory`."""
    recipe = demo_recipe(directory)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    checkpoint = str(recipe.model.path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    documents = load_documents("stdlib", "held_out")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    trained = int(model.config.max_position_embeddings)

    def measure(model: PreTrainedModel, label: str) -> Evaluation:
        with progress.stage(f"measure: {label}", MEASURE) as done:
            return evaluate(
                model,
                tokenizer,
                documents,
                lengths=[trained * multiple for multiple in MULTIPLES],
                trained_length=trained,
                windows=WINDOWS,
                prompts=PROMPTS,
                label=label,
                progress=done,
            )

    with DemoProgress(total=3 * MEASURE + TUNE + RELOAD) as progress:
        stages = [measure(model, "unpatched")]
        assert recipe.patch is not None
        name = f"{recipe.patch.method} ×{recipe.patch.factor:g}"
        patch_model(model, recipe.patch.method, recipe.patch.factor, **recipe.patch.options)
        verify(model)
        stages.append(measure(model, name))
        unpatch_model(model)
        with progress.stage("fine-tune with LoRA", TUNE) as done:
            result = train(recipe, lambda step: done(step.step / step.max_steps))
        tuned = load_pretrained(result.directory, base_model=model).merge_and_unload()  # type: ignore[operator]
        stages.append(measure(tuned, f"{name} + LoRA"))
        with progress.stage("save, and reload with plain transformers", RELOAD):
            check = reload_check(tuned, save_pretrained(tuned, directory / "model", tokenizer))
    comparisons = [compare(stages[0], stage) for stage in stages[1:]]
    page = write_report(
        stages,
        comparisons,
        directory,
        title="tiny-llama, extended from 256 to 1024 tokens",
        notes=[f"Made by make demo in {progress.seconds / 60:.1f} minutes, from {RECIPE}."],
        checks=[check],
    )
    print_table(stages, comparisons, checks=[check])
    print(f"\n{progress.seconds:.0f} s. Report: {page}")


def demo_recipe(directory: Path) -> Recipe:
    """The shipped recipe, with its result below `directory`, which is emptied of an earlier demo."""
    if not (ROOT / RECIPE).is_file():
        raise CheckpointError(
            f"the demo needs the recipes and the checkpoint of the repository, and {ROOT} has none;"
            " clone it and run `make demo` there"
        )
    run = directory / "fine-tune"
    if run.is_dir():
        shutil.rmtree(run)
    recipe = load_recipe(ROOT / RECIPE)
    path = ROOT / str(recipe.model.path)
    return load_recipe(ROOT / RECIPE, (f"output_dir={run}", f"model.path={path}"))


@torch.no_grad()
def reload_check(model: PreTrainedModel, directory: Path) -> Check:
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
        passed=by_plain <= SAME_LOGITS and by_ours == 0.0,
        detail=(
            f"largest difference {by_plain:.0e} over {ids.shape[1]} tokens, from float32 angles there;"
            f" {by_ours:g} with ropepatch.load_pretrained"
        ),
    )


class DemoProgress:
    """One bar over all stages with the time left; plain lines where the output is no terminal."""

    def __init__(self, total: float) -> None:
        self.console = Console(stderr=True)
        self.total = total
        self.finished = 0.0
        self.started = self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=60.0,
        )
        self.task = self.bar.add_task("starting", total=total)
        self.seconds = 0.0

    def __enter__(self) -> "DemoProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.started
        self.bar.stop()

    @contextmanager
    def stage(self, name: str, expected: float) -> Iterator[Callable[[float], None]]:
        """One stage of `expected` seconds; the body tells the share of it that is done."""
        self.bar.update(self.task, description=name)
        self._line(name, 0.0, force=True)

        def done(share: float) -> None:
            self.bar.update(self.task, completed=self.finished + share * expected)
            self._line(name, share * expected)

        yield done
        done(1.0)
        self.finished += expected

    def _line(self, name: str, within: float, *, force: bool = False) -> None:
        now = time.monotonic()
        if self.console.is_terminal or (now - self.last_line < 15 and not force):
            return
        self.last_line = now
        elapsed, share = now - self.started, (self.finished + within) / self.total
        left = f", about {elapsed * (1 - share) / share:.0f} s left" if share > 0.02 else ""
        print(f"[{elapsed:4.0f} s] {name}: {share:.0%} of the demo{left}", file=sys.stderr)
