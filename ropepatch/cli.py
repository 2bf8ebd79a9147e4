"""The `ropepatch` command.

Heavy imports happen inside of the commands, so that `--help` and mistakes answer at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ropepatch.errors import RopepatchError

Command = Callable[[argparse.Namespace], None]

USER_ERROR = 2
INTERRUPTED = 130  #: what a shell reports for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = build_parser().parse_args(arguments)
    command: Command = options.command
    try:
        command(options)
    except RopepatchError as error:
        print(f"ropepatch: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"ropepatch: {interrupt or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """One subparser per command; each knows the function that runs it."""
    parser = argparse.ArgumentParser(
        prog="ropepatch", description="Extend the context of a Hugging Face checkpoint."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    return parser


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("train", help="run a recipe, or go on with it")
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="training.max_steps=10 …"
    )
    parser.set_defaults(command=train_command)


def train_command(options: argparse.Namespace) -> None:
    """Train with a progress bar and say where the result lies."""
    from ropepatch.training.progress import TerminalProgress, duration
    from ropepatch.training.recipe import load_recipe
    from ropepatch.training.runner import train

    recipe = load_recipe(options.recipe, tuple(options.overrides))
    with TerminalProgress(options.recipe.stem) as progress:
        result = train(recipe, progress)
    if result.loss is None:
        print(f"this recipe was finished before: {result.directory}")
    else:
        loss, time = f"{result.loss:.3f}", duration(result.seconds)
        print(f"{result.steps} steps, last loss {loss}, {time}: {result.directory}")


if __name__ == "__main__":
    sys.exit(main())
