"""The arguments of `ropepatch eval` and `ropepatch compare`, which share all but their models."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ropepatch.errors import ConfigError

Number = TypeVar("Number", int, float)


def add_eval(parser: argparse.ArgumentParser) -> None:
    """The arguments of `ropepatch eval`."""
    parser.add_argument(
        "models", metavar="MODEL", nargs=1, help="a checkpoint's directory or Hub name"
    )
    _add_measurement(parser)
    parser.set_defaults(comparing=False, methods="", factors="")


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The arguments of `ropepatch compare`."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="the base, then checkpoints and adapters that are compared to it",
    )
    parser.add_argument(
        "--methods", default="", metavar="yarn,ntk", help="swapped in place on the base"
    )
    parser.add_argument("--factors", default="", metavar="2,4,8", help="of every method (4)")
    _add_measurement(parser)
    parser.set_defaults(comparing=True, intermixed="models")


def _add_measurement(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--tasks",
        default="",
        metavar="kv,ruler",
        help="ppl, longppl, passkey, needle, kv, ruler, … (kv, or else needle)",
    )
    add("--mode", choices=("forced_choice", "teacher_forced", "generate"), help="of taking answers")
    add("--questions", action="append", default=[], metavar="qa_1=FILE", help="SQuAD or HotpotQA")
    add(
        "--protocol",
        help="of ppl: yarn-truncate (the default), yarn-sliding, longlora, disjoint, last-s",
    )
    add("--stride", type=int, help="tokens between windows, where the protocol slides (256)")
    add("--data", default="stdlib", help="text file or directory (stdlib)")
    add("--lengths", default="", metavar="512,1024", help="tokens (1, 2, 4, 8 times trained)")
    add(
        "--windows",
        type=int,
        default=50,
        help="held-out windows (50); perplexity is of 10 documents",
    )
    add("--prompts", type=int, default=64, help="per task and length (64)")
    add("--bos", action="store_true", help="start windows and prompts with BOS")
    add("--seed", type=int, default=0)
    sampling = parser.add_mutually_exclusive_group()
    sampling.add_argument(
        "--ci", type=float, metavar="0.02", help="half of a 95 %% interval to reach"
    )
    sampling.add_argument("--budget", metavar="10m", help="time to take, instead of counts")
    add(
        "--original-max-position-embeddings",
        type=int,
        metavar="TOKENS",
        help="what the checkpoint was trained to, where its config does not say",
    )
    add("--output", type=Path, help="directory for results; a killed run goes on there (out/…)")


def parse_factors(text: str) -> list[float]:
    """`"2,4"` → `[2.0, 4.0]`"""
    return _numbers(text, float, "--factors takes numbers such as 2,4,8")


def parse_lengths(text: str) -> list[int]:
    """`"512,1024"` → `[512, 1024]`"""
    return _numbers(text, int, "--lengths takes tokens such as 512,1024")


def parse_names(text: str) -> list[str]:
    """`"yarn, ntk"` → `["yarn", "ntk"]`"""
    return [name for part in text.split(",") if (name := part.strip())]


def _numbers(text: str, kind: Callable[[str], Number], takes: str) -> list[Number]:
    try:
        return [kind(name) for name in parse_names(text)]
    except ValueError:
        raise ConfigError(f"{takes}; found {text!r}") from None


def parse_questions(texts: list[str]) -> dict[str, Path]:
    """`["qa_1=dev.json"]` → `{"qa_1": dev.json}`"""
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, _, path) in zip(texts, pairs, strict=True) if not path]:
        raise ConfigError(f"--questions takes TASK=FILE, such as qa_1=dev.json; found {wrong[0]!r}")
    return {name: Path(path) for name, _, path in pairs}


def add_lm_eval(parser: argparse.ArgumentParser) -> None:
    """The model and its patch; what follows the model is lm_eval's own."""
    parser.usage = "ropepatch lm-eval [--method METHOD --factor FACTOR] MODEL --tasks TASKS ..."
    parser.add_argument("--method", help="patch after loading; a saved patch needs no method")
    parser.add_argument("--factor", type=float, help="target length over trained length (4)")
    parser.add_argument("--target-length", type=int, help="tokens; instead of --factor")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="of the method"
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's directory or Hub name")
    parser.add_argument(
        "harness",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="arguments of `lm_eval run`, such as --tasks arc_easy --limit 100",
    )


def require_directory(path: Path) -> None:
    """Make the directory of --output, or raise ConfigError before minutes of measuring."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}; name a directory") from None
