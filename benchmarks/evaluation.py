"""python -m benchmarks.evaluation: perplexity against the loop that people have.

How to read what it prints: benchmarks/README.md.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.measure import Worker, serve
from benchmarks.report import aligned, show_ratio
from ropepatch.evals.perplexity import measure_perplexity
from ropepatch.evals.perplexity_plan import PerplexityPlan
from ropepatch.evals.protocols import perplexity_protocol
from ropepatch.evals.texts import Text
from ropepatch.terminal import silence_transformers

BOS = 1
CLOSE = 1e-5  #: nats, between the numbers of both


@dataclass(frozen=True)
class Case:
    """What is measured, and how much less it has to take."""

    protocol: str
    lengths: tuple[int, ...]
    tokens: int  #: of a document
    documents: int
    vocabulary: int
    target: float
    of_memory: bool = False


# Whether one pass has all lengths is tried once for all documents, so there are as many as one has.
CASES = {
    "8 prefixes": Case("yarn-truncate", tuple(range(512, 4097, 512)), 4096, 8, 4096, 4.0),
    "64 prefixes": Case("yarn-truncate", tuple(range(64, 4097, 64)), 4096, 2, 4096, 20.0),
    "sliding": Case("yarn-sliding", (1024,), 4096, 1, 32000, 3.3),
    "8192 tokens, vocabulary 32000": Case("yarn-truncate", (8192,), 8192, 1, 32000, 10, True),
    "8192 tokens, vocabulary 128000": Case("yarn-truncate", (8192,), 8192, 1, 128000, 25, True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case, tell what was found, and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    print(
        "YaRN's loop and ropepatch; median CPU seconds, and peak megabytes above the loaded model; one\n"
        "thread; [least, greatest] ratio of a round; largest difference of a loss in nats\n"
    )
    header = ("", "s", "", "ratio", "MB", "", "ratio", "difference", "target", "")
    rows = [header]
    for name in options.cases:
        rows.append(row(name, CASES[name], options.rounds))
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    print(aligned(rows))


def row(name: str, case: Case, rounds: int) -> tuple[str, ...]:
    """Both in processes of their own, which take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = [directory / f"{variant}.json" for variant in STEPS]
        workers = [
            stack.enter_context(
                Worker("benchmarks.evaluation", f"--serve={json.dumps([name, variant, str(file)])}")
            )
            for variant, file in zip(STEPS, files, strict=True)
        ]
        theirs, ours = (worker.run("memory")[1] for worker in workers)
        numbers = [np.array(json.loads(file.read_text())) for file in files]
        for _ in range(rounds):
            for worker, taken in zip(workers, times, strict=True):
                taken.append(worker.run("time")[0])
    naive, fast = (statistics.median(taken) for taken in times)
    difference = float(np.abs(numbers[0] - numbers[1]).max())
    ratio = theirs / ours if case.of_memory else naive / fast
    return (
        name,
        f"{naive:.2f}",
        f"{fast:.2f}",
        show_ratio(*times),
        f"{theirs:,.0f}",
        f"{ours:,.0f}",
        f"{theirs / ours:.1f}×",
        f"{difference:.0e}",
        f"{'memory' if case.of_memory else 'time'} ≥ {case.target:g}×",
        "met" if ratio >= case.target and difference <= CLOSE else "not met",
    )


def plan_of(case: Case) -> PerplexityPlan:
    """Random tokens."""
    random = torch.Generator().manual_seed(0)
    texts = tuple(
        Text(str(n), torch.randint(2, case.vocabulary, (case.tokens,), generator=random), None)
        for n in range(case.documents)
    )
    return PerplexityPlan(perplexity_protocol(case.protocol), case.lengths, texts, BOS)


def fast(model: PreTrainedModel, plan: PerplexityPlan) -> list[float]:
    """The loss at each length."""
    results = measure_perplexity(model, plan)
    return [one.loss.value for one in results if one.loss is not None and not one.after]


@torch.no_grad()
def naive(model: PreTrainedModel, plan: PerplexityPlan) -> list[float]:
    """The same by compute_perplexity of jquesnelle/yarn, eval/perplexity.py."""
    found = []
    for length in plan.lengths:
        losses = [
            model(read, labels=labels).loss
            for text in plan.texts
            for read, labels in windows_of_yarn(
                text.input_ids[None], length, truncate=plan.protocol.nested
            )
        ]
        found.append(float(torch.stack(losses).mean()))
    return found


def windows_of_yarn(
    labels: torch.Tensor, length: int, *, truncate: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the model reads, and the labels, of every window of a text."""
    room, sliding_window, before = length - 1, 256, 0
    if truncate:
        labels, sliding_window = labels[:, :room], room
    tokens = labels.shape[1]
    for begin in range(0, tokens, sliding_window):
        end = min(begin + room, tokens)
        read = torch.cat([torch.tensor([[BOS]]), labels[:, begin:end]], dim=1)
        targets = read.clone()
        targets[:, : -(end - before)] = -100
        yield read, targets
        before = end
        if end == tokens:
            return


Step = Callable[[PreTrainedModel, PerplexityPlan], list[float]]
STEPS: dict[str, Step] = {"naive": naive, "fast": fast}


def model_of(vocabulary: int) -> PreTrainedModel:
    """Hidden size 128, 2 layers, 4 heads with 2 for keys and values, random weights."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def work(cell: str) -> None:
    """Serve measurements of one case: see benchmarks/measure.py."""
    name, variant, file = json.loads(cell)
    silence_transformers()
    torch.set_num_threads(1)
    case = CASES[name]
    model, plan = model_of(case.vocabulary), plan_of(case)

    def step() -> None:
        Path(file).write_text(json.dumps(STEPS[variant](model, plan)))

    with torch.no_grad():
        model(torch.arange(64)[None])
    serve(step, answers=sys.stdout)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("--serve="):
        work(sys.argv[1].removeprefix("--serve="))
    else:
        main()
