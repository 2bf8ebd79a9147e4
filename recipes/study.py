# python recipes/study.py
"""What the recipes for tiny-llama show: every fine-tune with three seeds, as Markdown tables.

Each variant is a shipped recipe with some values changed. Runs lie in out/study; one that is
finished is not done again. Losses are of the same last 64 tokens of 50 held-out windows, means over
the seeds; differences are paired by window, with 95 % intervals from resampling documents, and the
smallest and largest of the seeds. Retrieval is by forced choice among 8 values (chance 0.125).
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ropepatch import load_pretrained
from ropepatch.checkpoint.opening import open_model, open_tokenizer
from ropepatch.corpus import load_documents
from ropepatch.evals import measure as measure_model
from ropepatch.evals import paired_difference, plan_evaluation
from ropepatch.evals.wording import show_interval, show_number
from ropepatch.patch import patch_model
from ropepatch.terminal import silence_transformers
from ropepatch.training.recipe import Recipe, load_recipe
from ropepatch.training.runner import train

HERE = Path(__file__).resolve().parent
ROOT = Path("out/study")
CHECKPOINT = str(HERE / "checkpoints/tiny-llama")
TRAINED = 256
LENGTHS = (256, 512, 1024, 2048)
SEEDS = (0, 1, 2)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Variant:
    """A recipe with changed values; without steps, only its patch."""

    name: str
    recipe: str = "tiny-llama-yarn-4x"
    changes: tuple[str, ...] = ()
    checkpoint: str = "final"  #: of the run, that is measured
    trained: bool = True

    @property
    def seeds(self) -> Sequence[int]:
        """Without training there is nothing to draw."""
        return SEEDS if self.trained else SEEDS[:1]


@dataclass(frozen=True)
class Section:
    """One question: its variants, and which one the others are compared to at `length`."""

    title: str
    variants: tuple[Variant, ...]
    reference: str
    lengths: tuple[int, ...] = LENGTHS


@dataclass
class Scores:
    """Of one variant: by length, mean loss of each window (seeds, windows), and retrieval (seeds,)."""

    losses: dict[int, Floats] = field(default_factory=dict)
    retrieval: dict[int, Floats] = field(default_factory=dict)
    documents: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


UNPATCHED = Variant("unpatched", changes=("patch=null",), trained=False)
YARN = Variant("YaRN ×4")
# Checkpoints at a fifth of the steps, for the speed of repair.
LINEAR = ("training.save_steps=20", "training.keep_checkpoints=5")
POSE = "tiny-llama-pose-4x"
S2 = "tiny-llama-longlora-8x"

SECTIONS = (
    Section(
        "Methods, before and after the fine-tune",
        (
            UNPATCHED,
            Variant("PI ×4, no training", "tiny-llama-linear-4x", trained=False),
            Variant("NTK ×4, no training", "tiny-llama-ntk-4x", trained=False),
            Variant("YaRN ×4, no training", trained=False),
            Variant("PI ×4, 20 of 100 steps", "tiny-llama-linear-4x", LINEAR, "checkpoint-20"),
            Variant("PI ×4", "tiny-llama-linear-4x", LINEAR),
            Variant("NTK ×4", "tiny-llama-ntk-4x"),
            YARN,
        ),
        "YaRN ×4",
    ),
    Section(
        "Which weights train",
        (
            YARN,
            Variant(
                "LoRA alone", changes=("lora.train_embeddings=false", "lora.train_norms=false")
            ),
        ),
        "YaRN ×4",
    ),
    Section(
        "Short sequences with long positions",
        (YARN, Variant("PoSE", POSE), Variant("RandPos", POSE, ("data.positions.kind=random",))),
        "YaRN ×4",
    ),
    Section(
        "Attention while training, ×8",
        (
            Variant("YaRN ×8, no training", "tiny-llama-yarn-8x", trained=False),
            Variant("full attention", S2, ("training.shifted_attention=null",)),
            Variant("S²", S2),
            Variant("groups without shift", S2, ("training.shifted_attention.shift=false",)),
        ),
        "full attention",
    ),
)


def main() -> None:
    """Run what has not been run, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", metavar="REGEX", default="", help="variants with such names")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    silence_transformers()
    variants = {each.name: each for section in SECTIONS for each in section.variants}
    for seed in SEEDS:
        for variant in variants.values():
            if seed in variant.seeds and re.search(options.only, variant.name):
                measure(variant, seed)
    if not options.only:
        for section in SECTIONS:
            print(f"\n### {section.title}\n\n{table(section)}")


def measure(variant: Variant, seed: int) -> Path:
    """The file with the scores of one run, made if it is not there."""
    recipe = seeded(variant, seed)
    path = Path(recipe.output_dir) / f"{variant.checkpoint}.npz"
    if path.exists():
        return path
    print(f"{variant.name}, seed {seed}", flush=True)
    plan = plan_evaluation(
        open_tokenizer(CHECKPOINT),
        load_documents("stdlib", "held_out"),
        lengths=LENGTHS,
        trained_length=TRAINED,
    )
    evaluation = measure_model(model_of(variant, recipe), plan, variant.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = {f"loss_{length}": evaluation.target_means(length) for length in LENGTHS}
    for length, found in evaluation.tasks["kv"].items():
        scores[f"retrieval_{length}"] = found.scores
    np.savez(path, documents=evaluation.documents, **scores)
    return path


def seeded(variant: Variant, seed: int) -> Recipe:
    """The recipe of a variant, in a directory named after what it changes."""
    name = variant.name.replace(" ", "-") if not variant.trained else "-".join(variant.changes)
    directory = ROOT / f"{variant.recipe}-{name}".rstrip("-") / str(seed)
    changes = (
        *variant.changes,
        f"model.path={CHECKPOINT}",
        f"output_dir={directory}",
        f"training.seed={seed}",
        f"data.seed={seed}",
        "evaluation=null",
    )
    return load_recipe(HERE / f"{variant.recipe}.yaml", changes)


def model_of(variant: Variant, recipe: Recipe) -> PreTrainedModel:
    """The model that is measured, trained now if it was not before."""
    model = open_model(CHECKPOINT, torch.float32)
    if variant.trained:
        train(recipe)
        trained = load_pretrained(Path(recipe.output_dir, variant.checkpoint), base_model=model)
        return trained.merge_and_unload().eval()  # type: ignore[operator, no-any-return]
    if recipe.patch is not None:
        patch_model(model, recipe.patch.method, recipe.patch.factor)
    return model.eval()  # type: ignore[return-value]


def scores_of(variant: Variant) -> Scores:
    """All seeds of a variant."""
    files = [np.load(measure(variant, seed)) for seed in variant.seeds]
    return Scores(
        {n: np.stack([file[f"loss_{n}"] for file in files]) for n in LENGTHS},
        {n: np.stack([file[f"retrieval_{n}"].mean() for file in files]) for n in LENGTHS},
        files[0]["documents"],
    )


def table(section: Section) -> str:
    """Losses, paired differences to the reference, and retrieval."""
    scores = {variant.name: scores_of(variant) for variant in section.variants}
    reference = scores[section.reference]
    head = " | ".join(f"loss in {length}" for length in LENGTHS)
    rows = [f"| | {head} | retrieval in {LENGTHS[-2]} / {LENGTHS[-1]} |", "|---" * 6 + "|"]
    for name, found in scores.items():
        cells = [
            cell(found, None if found is reference else reference, length) for length in LENGTHS
        ]
        retrieval = " / ".join(f"{found.retrieval[n].mean():.2f}" for n in LENGTHS[-2:])
        rows.append(f"| {name} | {' | '.join(cells)} | {retrieval} |")
    return "\n".join(rows)


def cell(found: Scores, reference: Scores | None, length: int) -> str:
    """Mean loss, and the difference to the reference where there is one."""
    losses = found.losses[length]
    text = f"{losses.mean():.3f}"
    if reference is None:
        return text
    others = reference.losses[length]
    pair = paired_difference(others.mean(0), losses.mean(0), found.documents)
    seeds = losses.mean(1) - others.mean(1)
    ends = [show_number(end, signed=True) for end in (seeds.min(), seeds.max())]
    spread = f"<br>{ends[0]} to {ends[1]}" if len(losses) > 1 else ""
    return f"{text}<br>{show_interval(pair, signed=True)}{spread}"


if __name__ == "__main__":
    main()
