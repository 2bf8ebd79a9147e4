"""The `ropepatch` command.

Heavy imports happen inside of the commands, so that `--help` and mistakes answer at once.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from ropepatch import __version__
from ropepatch.arguments import parse_arguments
from ropepatch.errors import ProcessError, RopepatchError, RopepatchWarning
from ropepatch.evaluation_arguments import add_compare, add_eval, add_lm_eval
from ropepatch.extras import require_extra
from ropepatch.inspection_arguments import add_inspect
from ropepatch.recipes_command import add_recipes
from ropepatch.recipes_command import run as recipes

Command = Callable[[argparse.Namespace], None]

USER_ERROR = 2
INTERRUPTED = 130  #: what a shell reports for a program that Ctrl-C ended
_IS_FIRST = os.environ.get("RANK", "0") == "0"  #: of what torchrun started; it tells how all goes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    # Threads that wait by spinning take the core away from the one that they wait for, as soon as
    # another program needs a core. The OpenMP runtime reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = parse_arguments(_build_parser(), arguments)
    command: Command = options.command
    try:
        with warnings.catch_warnings():
            # What one library has to tell another is nothing that a user can act on.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("always", RopepatchWarning)
            warnings.showwarning = _show_warning
            command(options)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as stop:  # rich does the same with stdout, but calls it a failure
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
    except RopepatchError as error:
        # What stops all processes is told by the first, what stops another one by that one.
        if _IS_FIRST or not isinstance(error, ProcessError):
            print(f"ropepatch: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as interrupt:
        if _IS_FIRST:
            print(f"ropepatch: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In a line of its own, without the place in the code that a user did not write."""
    if _IS_FIRST:
        print(f"ropepatch: warning: {message}", file=sys.stderr)


def _build_parser() -> argparse.ArgumentParser:
    """One subparser per command; each knows the function that runs it."""
    parser = argparse.ArgumentParser(
        prog="ropepatch", description="Extend the context of a Hugging Face checkpoint."
    )
    parser.add_argument("--version", action="version", version=f"ropepatch {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command, purpose: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=purpose, description=purpose)
        added.set_defaults(command=run)
        return added

    add("methods", show_methods, "list the methods and what they need")
    add_inspect(add("inspect", inspect, "show how a checkpoint or a method encodes positions"))
    _add_patch(add("patch", patch, "save a patched copy of a checkpoint"))
    _add_train(add("train", train, "run a recipe, or go on with it"))
    add_eval(add("eval", evaluate, "measure losses and tasks up to 8 times the length"))
    purpose = "judge checkpoints, adapters or methods against their base: improved or regressed"
    add_compare(add("compare", evaluate, purpose))
    add_lm_eval(add("lm-eval", lm_eval, "run lm-evaluation-harness on a patched model"))
    add_recipes(add("recipes", recipes, "list the recipes that come with ropepatch, or copy one"))
    demo_parser = add("demo", demo, "extend the bundled checkpoint and report what that does")
    _add_output(demo_parser, "out/demo")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's directory or Hub name")


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path(default), help=f"directory for results ({default})"
    )


def _add_original_length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--original-max-position-embeddings",
        type=int,
        metavar="TOKENS",
        help="what the checkpoint was trained to, where its config does not say",
    )


def _add_patch(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("directory", type=Path, metavar="OUT", help="where to save it")
    parser.add_argument("--method", default="yarn", help="see `ropepatch methods` (yarn)")
    parser.add_argument("--factor", type=float, help="target length over trained length (4)")
    parser.add_argument("--target-length", type=int, help="tokens; instead of --factor")
    _add_original_length(parser)
    parser.add_argument(
        "--part",
        choices=("both", "encoder", "decoder"),
        default="both",
        help="of an encoder–decoder model (both)",
    )
    parser.add_argument("--replace", action="store_true", help="in place of scaling it has")
    parser.add_argument(
        "--fit",
        metavar="DATA",
        help="text file or directory, or stdlib: start a new score bias from the model's own scores there",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="of the method"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="such as training.max_steps=10"
    )
    parser.set_defaults(intermixed="overrides")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="show the resolved recipe, its steps, parameters and memory; load no weights",
    )
    instead.add_argument(
        "--preview", action="store_true", help="show three sequences of the data, and do no more"
    )


def show_methods(_: argparse.Namespace) -> None:
    """A table of all methods."""
    from rich.console import Console
    from rich.table import Column, Table

    from ropepatch.methods.registry import aliases_of, method_class, methods_for, replaces

    whole = (Column(heading, no_wrap=True) for heading in ("method", "how", "transformers"))
    table = Table(*whole, "what", "options", box=None, pad_edge=False)
    for name in [*methods_for(replacing=False), *methods_for(replacing=True)]:
        cls = method_class(name)
        scales = "by length" if cls.length_dependent else "scales"
        table.add_row(
            "\nor ".join([f"{name}*" if cls.needs_training else name, *aliases_of(name)]),
            "replaces" if replaces(name) else scales,
            cls.native_rope_type or "–",
            ", ".join(cls.mechanisms()),
            ", ".join(field.name for field in fields(cls) if field.name != "factor"),
        )
    Console().print(table)
    print(
        "\nscales: every row alike; by length: scales each row by its own length; replaces:\n"
        "puts another encoding in its place; *: needs a fine-tune (linear: rotary models)\n"
        "rotary: Llama and most others; alibi: BLOOM, MPT, Falcon; relative: T5, mT5,\n"
        "UMT5; absolute: GPT-2, OPT, BERT"
    )


def inspect(options: argparse.Namespace) -> None:
    """How positions are encoded, as text and as a picture."""
    from ropepatch.inspection import run_inspection

    run_inspection(options)


def patch(options: argparse.Namespace) -> None:
    """Save a patched copy of a checkpoint."""
    from ropepatch.patch_command import run

    run(options)


def train(options: argparse.Namespace) -> None:
    """Run a recipe, or show what it would train on."""
    require_extra("train", "ropepatch train")
    # A mistyped file is an error before torch is imported; several processes report it together.
    if "RANK" not in os.environ:
        from ropepatch.training.files import read_recipe_file

        read_recipe_file(options.recipe)
    from ropepatch.training.processes import together
    from ropepatch.training.recipe import load_recipe

    # Whoever looks at text needs none to measure on yet.
    shown = ("evaluation=null",) if options.preview else ()
    with together():
        recipe = load_recipe(options.recipe, (*options.overrides, *shown))
        if options.dry_run:
            from ropepatch.training.plan import plan_text

            text = plan_text(recipe)
            if _IS_FIRST:
                print(text)
            return
        if options.preview:
            from ropepatch.training.preview import show_preview

            return show_preview(recipe, options.recipe.stem)

    from ropepatch.training.command import run_recipe

    run_recipe(recipe, options.recipe.stem)


def evaluate(options: argparse.Namespace) -> None:
    """Measure one model, or several and judge them."""
    from ropepatch.evaluation_commands import run_evaluation

    run_evaluation(options)


def lm_eval(options: argparse.Namespace) -> None:
    """EleutherAI's harness, which prints and writes what it always does."""
    from ropepatch.lm_eval_command import run

    run(options)


def demo(options: argparse.Namespace) -> None:
    """Extend the bundled checkpoint and write what that does to it."""
    require_extra("train", "ropepatch demo")
    from ropepatch.demo import main as run_demo

    run_demo(options.output)


if __name__ == "__main__":
    sys.exit(main())
