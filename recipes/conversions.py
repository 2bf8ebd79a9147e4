# python recipes/conversions.py
"""Another encoding for tiny-llama by a short fine-tune at its 256 tokens: does it reach 4096?

Trains each of MODELS that is not trained yet, in the output_dir of its recipe, and measures all on the
same held-out windows and prompts: the last 64 tokens of 50 windows with more and more before them,
paired 95 % intervals over documents; and retrieval, a value among 8 (chance 0.125), 128 prompts a
length. Prints a Markdown table.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ropepatch import patched
from ropepatch.adapters.pretrained import pretrained_model
from ropepatch.checkpoint.opening import open_model, open_tokenizer
from ropepatch.corpus import load_documents
from ropepatch.evals import Plan, paired_difference, plan_evaluation
from ropepatch.evals import measure as measure_model
from ropepatch.evals.losses import batched_losses, plain_head
from ropepatch.evals.statistics import mean_score
from ropepatch.evals.wording import MISSING, show_interval, show_number
from ropepatch.terminal import ShareProgress, silence_transformers
from ropepatch.training.models import fit_arguments, patch_arguments
from ropepatch.training.recipe import Recipe, load_recipe
from ropepatch.training.runner import train

HERE = Path(__file__).resolve().parent
CHECKPOINT = str(HERE / "checkpoints/tiny-llama")
TRAINED = 256
LENGTHS = (256, 512, 1024, 2048, 4096)
TARGETS, PROMPTS = 64, 128
FAR = 1769  #: tokens; there ALiBi's gentlest slope of 8 heads, 1/256, leaves a thousandth (256 ln 1000)

#: By name, the recipe and what is changed in it; nothing for the checkpoint as it is.
MODELS: dict[str, tuple[str, ...]] = {
    "unpatched": (),
    "YaRN ×8": ("tiny-llama-yarn-8x",),
    "ALiBi": ("convert/tiny-llama-to-alibi",),
    "KERPLE-log": ("convert/tiny-llama-to-kerple-log",),
    "KERPLE-log, not fitted": ("convert/tiny-llama-to-kerple-log", "patch.fit=null"),
    "T5 bias": ("convert/tiny-llama-to-t5-bias",),
    "T5 bias, not fitted": ("convert/tiny-llama-to-t5-bias", "patch.fit=null"),
    "NoPE": ("convert/tiny-llama-to-nope",),
}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Of one model."""

    losses: dict[int, Floats]  #: by length, mean of each window (windows,), in nats
    found: dict[int, Floats]  #: by length, (prompts,) 0 or 1
    distances: dict[int, Floats]  #: by length, (prompts,) tokens from the value to the question
    documents: NDArray[np.int64]  #: (windows,)
    untrained: Floats  #: loss in the trained length, patched alone, then with its fit


def main() -> None:
    """Train and measure what has not been, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="NAME", choices=[*MODELS], help=", ".join(MODELS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    silence_transformers()
    names = [options.only] if options.only else [*MODELS]
    scores = {}
    with ShareProgress("conversions") as progress:
        for number, name in enumerate(names):
            scores[name] = scores_of(name, options.threads)
            progress((number + 1) / len(names))
    print(table(scores))


def scores_of(name: str, threads: int) -> Scores:
    """The scores of a model, trained and measured now if they are not there."""
    recipe = recipe_of(*MODELS[name])
    path = Path(recipe.output_dir if recipe else "out/convert", "conversion.npz")
    if not path.exists():
        if recipe is not None:
            train(recipe)
            torch.set_num_threads(threads)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **measure(recipe))  # type: ignore[arg-type]
    return read(np.load(path))


def recipe_of(name: str = "", *changes: str) -> Recipe | None:
    """A recipe, which leaves what it makes in a directory of its own if it is changed."""
    if not name:
        return None
    recipe = load_recipe(HERE / f"{name}.yaml", ("evaluation=null", *changes))
    return replace(recipe, output_dir="-".join((recipe.output_dir, *changes)))


def measure(recipe: Recipe | None) -> dict[str, NDArray[np.generic]]:
    """What `read` reads."""
    plan = plan_evaluation(
        open_tokenizer(CHECKPOINT),
        load_documents("stdlib", "held_out"),
        lengths=LENGTHS,
        trained_length=TRAINED,
        targets=TARGETS,
        prompts=PROMPTS,
    )
    untrained = np.array([] if recipe is None else untrained_losses(recipe, plan))
    path = CHECKPOINT if recipe is None else str(Path(recipe.output_dir, "final"))
    evaluation = measure_model(opened(path), plan, "")
    found: dict[str, NDArray[np.generic]] = {
        "documents": evaluation.documents,
        "untrained": untrained,
    }
    for length, asked in evaluation.tasks["kv"].items():
        found[f"losses_{length}"] = evaluation.target_means(length)
        found[f"found_{length}"] = asked.scores
        found[f"distances_{length}"] = asked.distances
    return found


def opened(path: str) -> PreTrainedModel:
    """A model to measure, with its adapter if it has one."""
    return pretrained_model(open_model(path, torch.float32)).eval()  # type: ignore[no-any-return]


@torch.no_grad()
def untrained_losses(recipe: Recipe, plan: Plan) -> list[float]:
    """Loss of the targets in the trained length, without training: of the patch, and with its fit."""
    assert recipe.patch is not None
    model = opened(CHECKPOINT)
    ids = plan.windows.suffix(TRAINED)
    losses = []
    fit = fit_arguments(recipe, model, plan.tokenizer)
    for each in [{}, fit] if fit else [{}]:
        with patched(model, **patch_arguments(recipe.patch), **each):
            found = batched_losses(model, ids, keep=TARGETS, head=plain_head(model))
        losses.append(found.double().mean().item())
    return losses


def read(file: Mapping[str, Any]) -> Scores:
    """The scores in a file."""
    losses, found, distances = (
        {length: file[f"{kind}_{length}"] for length in LENGTHS}
        for kind in ("losses", "found", "distances")
    )
    return Scores(losses, found, distances, file["documents"], file["untrained"])


def table(scores: Mapping[str, Scores]) -> str:
    """A row for each model: its loss in the trained length, the change to longer ones, retrieval."""
    heads = [f"untrained, in {TRAINED}", f"loss in {TRAINED}"]
    heads += [f"in {length}" for length in LENGTHS[1:]]
    heads += [f"retrieval in {TRAINED}", f"in {LENGTHS[-2]}", f"in {LENGTHS[-1]} from {FAR:,} on"]
    rows = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, each in scores.items():
        cells = [" → ".join(map(show_number, each.untrained)) or MISSING]
        cells += [show_number(each.losses[TRAINED].mean())]
        cells += [change(each, length) for length in LENGTHS[1:]]
        cells += [
            show_interval(mean_score(each.found[n]), digits=2) for n in (TRAINED, LENGTHS[-2])
        ]
        cells += [show_interval(mean_score(far(each)), digits=2)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def change(scores: Scores, length: int) -> str:
    """Of the loss, from the trained length to a longer one, paired by window."""
    pair = paired_difference(scores.losses[TRAINED], scores.losses[length], scores.documents)
    return show_interval(pair, digits=2, signed=True)


def far(scores: Scores) -> Floats:
    """Answers in the longest prompts whose value stands beyond the reach of ALiBi's slopes."""
    longest = LENGTHS[-1]
    return scores.found[longest][scores.distances[longest] >= FAR]


if __name__ == "__main__":
    main()
