"""python -m benchmarks.bias_attention: attention with score biases against stock and the limit.

`--quick` takes a few minutes, everything some hours; `--resume` goes on where a run ended. How to
read what it prints: benchmarks/README.md.
"""

import argparse
import itertools
import json
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from benchmarks.accuracy import LENGTHS as ACCURACY_LENGTHS
from benchmarks.accuracy import errors
from benchmarks.cells import DIRECTIONS, DTYPES, VARIANTS, Cell, Measurement, plan
from benchmarks.measure import Worker, WorkerDied, available_memory
from benchmarks.report import aligned, summary, table
from benchmarks.targets import verdicts
from ropepatch.terminal import ShareProgress, silence_transformers
from ropepatch.whole_files import write_whole

_PATIENCE = 600.0  # seconds for all rounds of one cell; what would take longer gets fewer rounds
_FEWER_ROUNDS = 3
_SHORT = {"fp32": "float32", "bf16": "bfloat16"}
_USABLE = 0.85  # of the memory that is available; the rest is for the other workers

Results = dict[Cell, Measurement]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the options name and print tables as they fill."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.accuracy:
        print_accuracy(options)
        return
    if options.quick:
        options.lengths, options.rounds = options.lengths or [1024, 2048], 1
    if options.output.exists() and not options.resume:
        parser.error(f"{options.output} exists; go on with --resume, or name another --output")
    cells = plan(
        models=options.models,
        dtypes=options.dtypes,
        directions=options.directions,
        lengths=options.lengths,
        variants=options.variants,
    )
    results = read_results(options.output) if options.output.exists() else {}
    print("Median CPU seconds and peak megabytes above the loaded model; one thread")
    print(f"[least, greatest] ratio of a round; {_machine()}\n")
    measure_all(cells, results, options.rounds, options.output)
    print(summary(verdicts(results, options.dtypes)))


def measure_all(cells: Sequence[Cell], results: Results, rounds: int, output: Path) -> None:
    """Fill `results` with what is missing, write them after every group, print every full table."""
    total = sum(cell.work for cell in cells if cell not in results) or 1.0
    done = 0.0
    with ShareProgress("Benchmark") as progress:
        for _, of_table in itertools.groupby(cells, lambda cell: cell.group[:3]):
            tabled = list(of_table)
            for _, of_group in itertools.groupby(tabled, lambda cell: cell.group):
                missing = [cell for cell in of_group if cell not in results]
                if not missing:
                    continue
                progress.title = "{} {} {} {:,}".format(*missing[0].group)
                results |= measure_group(missing, rounds)
                write_results(output, results)
                done += sum(cell.work for cell in missing)
                progress(done / total)
            with _paused(progress):
                print(
                    table(list(dict.fromkeys(cell.group for cell in tabled)), results), end="\n\n"
                )


def measure_group(cells: Iterable[Cell], rounds: int) -> Results:
    """Cells that differ in their variant only: each in its process, in turn, round after round."""
    results: Results = {}
    seconds: dict[Cell, list[float]] = {}
    megabytes: dict[Cell, float] = {}
    with ExitStack() as stack:
        workers: dict[Cell, Worker] = {}
        for cell in cells:
            if cell.stock_bytes > _USABLE * available_memory():
                needed = f"needs about {cell.stock_bytes / 1e9:.0f} GB"
                results[cell] = Measurement(cell, problem=f"does not fit: {needed}")
            else:
                worker = Worker("benchmarks.worker", json.dumps(asdict(cell)))
                workers[cell] = stack.enter_context(worker)
        own_rounds: dict[Cell, int] = {}
        for turn in range(-1, rounds):  # the turn before the first warms up, and measures memory
            for cell, worker in workers.items():
                if cell in results or turn >= own_rounds.get(cell, rounds):
                    continue
                try:
                    if turn < 0:
                        own_rounds[cell], megabytes[cell] = _affordable(worker, rounds)
                    else:
                        seconds.setdefault(cell, []).append(worker.run("time")[0])
                except WorkerDied as error:
                    results[cell] = Measurement(cell, problem=str(error))
    for cell, taken in seconds.items():
        if cell not in results:
            results[cell] = Measurement(cell, tuple(taken), megabytes[cell])
    return results


def _affordable(worker: Worker, rounds: int) -> tuple[int, float]:
    """Warm a worker up: as many rounds as it has time for then, and its peak memory in megabytes."""
    started = time.monotonic()
    _, megabytes = worker.run("memory")
    fits = (time.monotonic() - started) * (rounds + 1) <= _PATIENCE
    return (rounds if fits else min(rounds, _FEWER_ROUNDS)), megabytes


@contextmanager
def _paused(progress: ShareProgress) -> Iterator[None]:
    """The bar is away while a table is printed: else the table would follow it to stderr."""
    progress.bar.stop()
    yield
    progress.bar.start()


def write_results(path: Path, results: Results) -> None:
    """Write everything measured so far, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = [asdict(measurement) for measurement in results.values()]
    write_whole(path, json.dumps({"machine": _machine(), "measurements": measured}, indent=1))


def read_results(path: Path) -> Results:
    """What `write_results` wrote; refuses results of another machine or other versions."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["machine"] != _machine():
        raise SystemExit(f"{path} is of {content['machine']}; this is {_machine()}")
    measurements = [
        Measurement(Cell(**cell), tuple(one["seconds"]), one["memory"], one["problem"])
        for one in content["measurements"]
        for cell in [one["cell"]]
    ]
    return {measurement.cell: measurement for measurement in measurements}


def _machine() -> str:
    """The versions and the processor that numbers depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"torch {torch.__version__}, transformers {transformers.__version__}, {processor}"


def print_accuracy(options: argparse.Namespace) -> None:
    """Errors of stock and ours against stock in float64, each as soon as it is known."""
    silence_transformers()
    torch.set_num_threads(1)
    print("Relative error of the output against stock eager in float64: largest, typical (rms)")
    header = ("model    ", "dtype    ", "tokens", "stock           ", "ours            ", "")
    print(aligned([header]))
    models = [model for model in options.models if model in ACCURACY_LENGTHS]
    for error in errors(models, options.dtypes, options.lengths):
        texts = (
            error.model,
            error.dtype,
            f"{error.length:,}",
            f"{error.stock.largest:.1e} {error.stock.typical:.1e}",
            f"{error.ours.largest:.1e} {error.ours.typical:.1e}",
        )
        print(aligned([header, (*texts, error.word)]).splitlines()[1], flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bias_attention", description=__doc__
    )
    add = parser.add_argument
    add("--models", type=_names(VARIANTS), default=list(VARIANTS), help=", ".join(VARIANTS))
    add("--dtypes", type=_names(DTYPES), default=list(DTYPES), help="fp32, bf16")
    add(
        "--directions",
        type=_names(DIRECTIONS),
        default=list(DIRECTIONS),
        help=", ".join(DIRECTIONS),
    )
    variants = ("stock", "eager", "sdpa", "ours", "limit")
    add(
        "--variants",
        type=_names(variants),
        default=["stock", "ours", "limit"],
        help=", ".join(variants),
    )
    add("--lengths", type=lambda text: [int(part) for part in text.split(",")], help="tokens")
    add("--rounds", type=int, default=5, help="of every cell; long ones may get three")
    add("--output", type=Path, default=Path("out/bias_attention.json"), help="results as JSON")
    add("--resume", action="store_true", help="go on with --output, leave out what it has")
    add("--quick", action="store_true", help="one round at 1024 and 2048 tokens")
    add("--accuracy", action="store_true", help="measure errors instead of costs")
    return parser


class _names:
    """Reads a list of names with commas, each one of those allowed; fp32 and bf16 are short forms."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self.allowed = tuple(allowed)

    def __call__(self, text: str) -> list[str]:
        names = [_SHORT.get(name, name) for name in text.split(",")]
        if wrong := [name for name in names if name not in self.allowed]:
            raise argparse.ArgumentTypeError(
                f"{', '.join(wrong)}: choose from {', '.join(self.allowed)}"
            )
        return names


if __name__ == "__main__":
    main()
