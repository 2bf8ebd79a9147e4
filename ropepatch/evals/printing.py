"""Tables in the terminal: a heading, aligned columns, a blank line."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain_table() -> Table:
    """A table without frames, in which a column takes no more room than it needs."""
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def print_under(heading: str, table: Table, console: Console) -> None:
    """Print a table; its heading is not the table's own title, which wraps at the table's width."""
    console.print(Text(heading, style="bold"))
    console.print(table)
    console.print()
