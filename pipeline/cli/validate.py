"""`attar validate`: an artifact judged again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.shared import EXIT_CODES, AsJson, console, put_json, tell

__all__ = ["validate"]


def validate(
    folder: Annotated[Path, typer.Argument(help="Folder of an artifact: RUN/TARGET.", show_default=False)],
    target: Annotated[
        str | None,
        typer.Option(help="Where to judge it: a target's name or file.", show_default="the one it was made for"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="local, or ssh://[user@]host[:port].", show_default=False)] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Its recipe: judge accuracy on the whole test split.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="The float model, to be timed in turns with it.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge an artifact again, on its own target or another.

    "Is it still inside its budget after the runtime update?" The budget is the one in its manifest.
    """
    from pipeline.report.revalidation import render
    from pipeline.revalidate import revalidate
    from targets.target import load

    ours = load(target, Path.cwd()) if target else None
    found = revalidate(folder, ours, recipe=recipe, against=against, at=device or "", say=tell)
    console().print(render(found))
    if as_json:
        put_json(found.model_dump_json(indent=1))
    raise typer.Exit(EXIT_CODES[found.verdict])
