"""`attar search`: which settings of a recipe's stages are worth it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.interruption import heeding
from pipeline.cli.shared import EXIT_CODES, AsJson, RecipePath, Sets, console, overrides, put_json

__all__ = ["search"]


def search(
    recipe: RecipePath,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.", show_default="runs/<recipe name>-search")
    ] = None,
    set_: Sets = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="In place of the recipe's; earlier calls count.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="After which no further trial begins.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explore a recipe's search space and draw the frontier."""
    from pipeline.report.progress import progress
    from pipeline.report.search_terminal import render
    from pipeline.search import search as explore

    screen = console()
    with progress(screen) as show, redirect_stdout(sys.stderr):  # what a user's own code prints is not for --json
        made = explore(recipe, out, overrides(set_), trials=trials, minutes=minutes, listener=heeding(show))
    screen.print(render(made, out or Path("runs") / f"{made.name}-search"))
    if as_json:
        put_json(made.model_dump_json(indent=1))
    raise typer.Exit(EXIT_CODES[made.verdict])
