"""Parts that every table and message in a terminal is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report import words
from targets.budget import Verdict

__all__ = ["STYLES", "bare_table", "heading", "print_table", "state", "text"]

STYLES: dict[Verdict, str] = {"met": "green", "missed": "red", "inconclusive": "yellow", "failed": "magenta"}


def text(content: str, style: str = "") -> Text:
    """One line of printable characters that folds where it must."""
    return Text(words.clean(content), style=style, overflow="fold")


def state(verdict: Verdict) -> Text:
    """The verdict with its sign, in its colour."""
    return Text(f"{words.SYMBOLS[verdict]} {verdict}", style=STYLES[verdict])


def heading(verdict: Verdict, target: str, sentence: str) -> RenderableType:
    """The line that a reader looks for first; long sentences hang under their own start."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    if target:
        table.add_column(overflow="fold", max_width=20)
    table.add_column(overflow="fold")
    stamp = Text(f"{words.SYMBOLS[verdict]} {verdict.upper()}", style=f"bold {STYLES[verdict]}")
    told = Text("\n".join(words.clean(line) for line in sentence.splitlines()), overflow="fold")
    table.add_row(*(stamp, text(target, "bold"), told) if target else (stamp, told))
    return table


def bare_table() -> Table:
    """A table with a rule below its head and no other lines."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], console: Console) -> None:
    """Prints a plain table; the first column keeps its width, the others wrap."""
    table = bare_table()
    for i, title in enumerate(header):
        table.add_column(title, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(words.clean(cell), style="" if i else "bold") for i, cell in enumerate(row)))
    console.print(table)
