"""The arguments of `ropepatch inspect`."""

import argparse
from pathlib import Path


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """A model, a method, or both: the model as the method would make it."""
    parser.usage = "ropepatch inspect [MODEL] [--method METHOD ...] [--plot out.png]"
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="a checkpoint's directory or Hub name")
    add("--plot", type=Path, metavar="out.png", help="draw it, too; .png, .svg or .pdf")
    add("--method", help="show what it makes of MODEL, or of the sizes below")
    add("--factor", type=float, help="target length over trained length (4)")
    add("--target-length", type=int, metavar="TOKENS", help="instead of --factor")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="of the method")
    add(
        "--original-max-position-embeddings",
        type=int,
        metavar="TOKENS",
        help="what a checkpoint was trained to (MODEL's own; without MODEL 4096)",
    )
    sizes = parser.add_argument_group("without MODEL")
    sizes.add_argument("--dim", type=int, help="channels that rotate, or of an embedding (128)")
    sizes.add_argument("--base", type=float, help="of the rotary frequencies (10000)")
    sizes.add_argument("--heads", type=int, help="of a score bias (8)")
