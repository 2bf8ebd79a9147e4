"""Prove that the tests find faults: make one at a time in a copy of the package, and run the tests.

    .venv/bin/python tests/mutations/run.py                       # all faults, their likely tests
    .venv/bin/python tests/mutations/run.py yarn-ramp-rounding    # some
    .venv/bin/python tests/mutations/run.py --suite "tests -n 2"  # another suite for every fault
    .venv/bin/python tests/mutations/run.py --check               # only whether all can be made

`reference.yaml` says which faults the suite of its commit finds. The exit code is 1 when one of
those is not found, and 2 for a fault that says nothing: its text is not in the package once, or its
code does not run. At the end, the tests that found something have to pass without any fault.
"""

import argparse
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from checkout import Checkout, Outcome
from fault_list import Fault, FaultError, load_faults, load_reference, record_reference

_WHOLE_SUITE = ["tests"]


def main() -> int:
    """Run the list; the exit code."""
    options = _parse()
    # A shell ignores Ctrl-C for what runs in the background, and so would processes of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        faults = load_faults(options.names)
        with tempfile.TemporaryDirectory(prefix="ropepatch-mutations-") as directory:
            checkout = Checkout(Path(directory, "copy"), options.limit)
            for fault in faults:
                fault.faulty(fault.place(checkout.root))
            if options.check:
                print(f"{len(faults)} faults can be made")
                return 0
            return _run_all(faults, checkout, options)
    except FaultError as error:
        print(f"mutations: error: {error}", file=sys.stderr)
        return 2


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutations", description="Which faults the tests find.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults (all)")
    parser.add_argument("--suite", metavar="ARGS", help="pytest arguments for every fault")
    thorough = "the whole suite where the likely tests find nothing"
    parser.add_argument("--thorough", action="store_true", help=thorough)
    parser.add_argument("--record", metavar="COMMIT", help="write the results as the reference")
    parser.add_argument("--check", action="store_true", help="run no tests")
    parser.add_argument(
        "--limit", type=float, default=1800.0, metavar="SECONDS", help="of one run (1800)"
    )
    return parser.parse_args()


def _run_all(faults: list[Fault], checkout: Checkout, options: argparse.Namespace) -> int:
    """One line for each fault as it comes, then what was missed."""
    reference = load_reference()["found_by"]
    width = max(len(fault.name) for fault in faults)
    missed, broken = [], []
    finders: dict[str, list[str]] = {}  # tests, and the faults that each one found
    started = time.monotonic()
    for number, fault in enumerate(faults, 1):
        begun = time.monotonic()
        outcome = _try(fault, checkout, options)
        said = {"passed": "not found", "failed": outcome.test, "broken": "BROKEN FAULT"}
        print(
            f"{number:3}/{len(faults)} {fault.name:{width}} {time.monotonic() - begun:5.0f} s  "
            f"{said[outcome.word]}{_time_left(started, number, len(faults))}",
            flush=True,
        )
        if outcome.word == "broken":
            print(outcome.detail, flush=True)
            broken.append(fault.name)
        elif options.record:
            record_reference(options.record, fault.name, outcome.test)
        if outcome.test is not None and outcome.word == "failed":
            finders.setdefault(outcome.test, []).append(fault.name)
        if outcome.word != "failed" and reference.get(fault.name) is not None:
            missed.append(fault.name)
    if finders:
        broken += _not_due_to_faults(checkout, finders)
    return _summary(len(faults), missed, broken)


def _try(fault: Fault, checkout: Checkout, options: argparse.Namespace) -> Outcome:
    """Run the tests on one fault."""
    arguments = shlex.split(options.suite) if options.suite else fault.arguments()
    with checkout.with_fault(fault):
        outcome = checkout.run(arguments)
        if outcome.word == "passed" and options.thorough:
            outcome = checkout.run(_WHOLE_SUITE)
    return outcome


def _not_due_to_faults(checkout: Checkout, finders: dict[str, list[str]]) -> list[str]:
    """Names of faults whose finding test fails without any fault, too; all finders in one run."""
    print(f"the {len(finders)} tests that found something, without any fault:", end=" ", flush=True)
    outcome = checkout.run(sorted(finders))
    print(outcome.word, outcome.test or "")
    if outcome.word == "passed":
        return []
    print(outcome.detail)
    return finders.get(outcome.test or "", [name for names in finders.values() for name in names])


def _time_left(started: float, done: int, count: int) -> str:
    if done == count:
        return ""
    left = (time.monotonic() - started) / done * (count - done)
    return f"  (about {left / 60:.0f} min left)"


def _summary(count: int, missed: list[str], broken: list[str]) -> int:
    print(
        f"\n{count} faults; missed though the reference finds them: {len(missed)}; broken: {len(broken)}"
    )
    for word, names in (("missed", missed), ("broken", broken)):
        for name in names:
            print(f"{word}: {name}")
    return 2 if broken else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
