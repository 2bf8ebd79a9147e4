"""`ropepatch recipes`: list the recipes and checkpoints that come with ropepatch, and copy one."""

import argparse
import shlex
from pathlib import Path

from ropepatch.bundled_recipes import bundled_checkpoints, bundled_recipes, copy_bundled, summary


def add_recipes(parser: argparse.ArgumentParser) -> None:
    """Add the action `copy NAME [DIR]`; without an action the command lists."""
    actions = parser.add_subparsers(metavar="copy", dest="action")
    purpose = "copy a recipe, or a checkpoint, to change and run it"
    copy = actions.add_parser("copy", help=purpose, description=purpose)
    copy.add_argument("name", metavar="NAME", help="as `ropepatch recipes` lists it")
    copy.add_argument(
        "directory", metavar="DIR", type=Path, nargs="?", default=Path(), help="where to (here)"
    )


def run(options: argparse.Namespace) -> None:
    """List, or copy and print the command that runs the copy."""
    if options.action is None:
        return _list()
    written = copy_bundled(options.name, options.directory)
    for path in written:
        print(path)
    if written[0].suffix == ".yaml":
        command = written[0].read_text(encoding="utf-8").partition("\n")[0]
        print(f"\nrun it:  {command.removeprefix('# ')}")
    else:
        print(f"\nlook at it:  ropepatch inspect {shlex.quote(str(written[0]))}")


def _list() -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("recipe", no_wrap=True), "description", box=None, pad_edge=False)
    for name, path in {**bundled_recipes(), **bundled_checkpoints()}.items():
        table.add_row(name, summary(path))
    Console().print(table)
    print("\nropepatch recipes copy NAME [DIR] copies one, to change and run it")
