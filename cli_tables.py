"""Tables of a command: drawn by rich on a terminal, plain text everywhere else."""

from collections.abc import Sequence
from typing import TextIO

_RULE = "\n|--"
"""Begins the second line of a table in Markdown."""


def print_text(text: str, stream: TextIO) -> None:
    """Print lines; a text with a table in Markdown is drawn where the stream is a terminal."""
    if stream.isatty() and _RULE in text.replace(" ", ""):
        from rich.console import Console
        from rich.markdown import Markdown

        Console(file=stream).print(Markdown(text))
    else:
        print(text, file=stream, flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], plain: Sequence[str], stream: TextIO) -> None:
    """Print rows as a table on a terminal, and as the lines `plain` elsewhere.

    Args:
        head: names of the columns.
        rows: of as many cells each.
        plain: the same for programs and files.
        stream: where to.
    """
    if stream.isatty() and rows:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*head, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*map(Text, row))
        Console(file=stream).print(table)
    else:
        for line in plain:
            print(line, file=stream, flush=True)
