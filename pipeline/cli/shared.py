"""What several commands share: options, the exit codes of verdicts, where messages go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import interruption

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.store import Store

__all__ = ["EXIT_CODES", "AsJson", "RecipePath", "Sets", "console", "overrides", "say", "store", "tell"]

EXIT_CODES = {"met": 0, "missed": 1, "failed": 3, "inconclusive": 4}

RecipePath = Annotated[Path, typer.Argument(help="Recipe file (YAML).", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set stages.0.distill.epochs=2"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else there.")]


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


def say(text: str) -> None:
    """As `tell`, in the middle of a command: ends it, where a Ctrl-C was lost before."""
    interruption.heed()
    tell(text)


def tell(text: str) -> None:
    """One message to a person, on standard error; names in files and devices' words may hold anything."""
    from pipeline.report.words import visible

    typer.echo(visible(text), err=True)
