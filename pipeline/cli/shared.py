"""What several commands share: options, the exit codes of verdicts, where messages go."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import interruption

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.store import Store

__all__ = [
    "EXIT_CODES",
    "AsJson",
    "RecipePath",
    "Sets",
    "console",
    "overrides",
    "put_json",
    "say",
    "store",
    "tell",
]

EXIT_CODES = {"met": 0, "missed": 1, "failed": 3, "inconclusive": 4}

RecipePath = Annotated[Path, typer.Argument(help="Recipe file (YAML).", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set stages.0.distill.epochs=2"),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="The result as one JSON object on standard output; nothing there if there is none."),
]

_FAST = "\u00a0"  # a space where no line breaks; `visible` lets none through
_COPIED = re.compile(r"`[^`]*`|(?:(?<=: )|^ +)(?:attar|openssl|pip) .*")
_SOURCE = re.compile(r" *[0-9]+ \| ")  # a line of a recipe, as faults show it
_SCALARS = re.compile(r'\[\n\s*([^\s"\[\]{}]+(?:\n\s*[^\s"\[\]{}]+)*)\n\s*\]')


def overrides(sets: list[str] | None) -> dict[str, str]:
    """The values of `--set`, by key."""
    from targets.errors import InputError

    found = {}
    for item in sets or ():
        key, sep, value = item.partition("=")
        if not sep or not key:
            raise InputError(f"--set {item!r} must look like KEY=VALUE", help="--set stages.0.distill.epochs=2")
        found[key] = value
    return found


def store() -> Store:
    """The store of finished steps."""
    from pipeline.run import default_store
    from pipeline.store import Store

    return Store(default_store())


def console(stdout: bool = False) -> Console:
    """Where people read: standard error, or standard output for what was asked to be listed."""
    from rich.console import Console

    return Console(stderr=not stdout, highlight=False)


def put_json(text: str) -> None:
    """JSON on standard output, as it was indented; a list of numbers takes one line."""
    sys.stdout.write(_SCALARS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def say(text: str, copied: str = "") -> None:
    """As `tell`, in the middle of a command: ends it, where a Ctrl-C was lost before."""
    interruption.heed()
    tell(text, copied)


def tell(text: str, copied: str = "") -> None:
    """Lines for a person, on standard error; names in files and devices' words may hold anything.

    In a terminal they break between words. What a person may copy is never broken, and goes on a line of its own where
    it does not fit: `copied`, a path or a command that ends the text; what stands in backticks; commands after a colon,
    or on a line of their own.
    """
    from pipeline.report.words import visible

    shown = visible(text) + f" {_whole(visible(copied))}" * bool(copied)
    if sys.stderr.isatty():
        shown = "\n".join(map(_folded, shown.split("\n")))
    typer.echo(shown.replace(_FAST, " "), err=True)


def _folded(line: str) -> str:
    if _SOURCE.match(line):
        return line
    hanging = " " * (len(line) - len(line.lstrip(" ")) + 2)
    line = _COPIED.sub(lambda found: _whole(found[0]), line)
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)


def _whole(text: str) -> str:
    return text.replace(" ", _FAST)
