"""What a search found, in a terminal: the pick first, fits 80 columns."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.report import search_story as story
from pipeline.report import words
from pipeline.report.console import STYLES, bare_table, heading, text
from pipeline.report.search_model import Search, SearchTarget

__all__ = ["render"]

_HEADS = {"accuracy_drop_points": "lost", "latency_p50_ms": "p50 ms", "size_mb": "size MB"}


def render(made: Search, out: Path | None = None) -> RenderableType:
    """The search as something that a rich console prints.

    Args:
        out: folder of the report's files.
    """
    parts: list[RenderableType] = ["", text(f"search of {made.name}", "bold"), ""]
    for target in made.targets:
        pick = made.pick(target.target)
        told = "\n".join([story.verdict(made, target), *story.shortfalls(pick)])
        parts += [heading(pick.verdict if pick else "failed", target.target, told)]
        parts += [text(pick.command, "bold"), ""] if pick else [""]
    for target in made.targets:
        parts += [text(f"trials on {target.target}", "bold"), _trials(made, target), ""]
        parts += [text(unbeaten), ""] if (unbeaten := story.frontier(made, target)) else []
    parts += [text(f"{story.trials(made)}. {story.ended(made)}")]
    report = f"{out}/report.html" if out else "report.html"
    parts += [Text.assemble(("report  ", "dim"), words.clean(report), overflow="fold")]
    return Padding(Group(*parts), (0, 1), expand=False)


def _trials(made: Search, target: SearchTarget) -> RenderableType:
    rows = story.lines(made, target)
    metrics = [metric for metric in story.columns(rows, target) if metric in _HEADS]
    digits = {m: words.column(line.measured[m].value for line in rows if m in line.measured) for m in metrics}
    table: Table = bare_table()
    table.add_column("", no_wrap=True)
    for metric in metrics:
        table.add_column(_HEADS[metric], justify="right", no_wrap=True)
    table.add_column("settings; why, or why not", overflow="fold")
    for line in rows:
        cells = [words.number(line.measured[m].value, digits[m]) if m in line.measured else "-" for m in metrics]
        why = Text.assemble(
            words.clean(", ".join(line.settings)),
            "\n",
            (words.SYMBOLS[line.verdict], STYLES[line.verdict]),
            " ",
            (words.clean(line.reason), "dim"),
        )
        table.add_row(text(line.name), *map(text, cells), why, style="bold" if line.chosen else "")
    return table
