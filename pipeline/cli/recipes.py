"""`attar check`, `plan`, `run` and `new`: what is done with a recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.interruption import heeding
from pipeline.cli.shared import EXIT_CODES, AsJson, RecipePath, Sets, console, overrides, put_json, store, tell

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from targets.devices import Device
    from targets.documents import Document
    from targets.target import Target

__all__ = ["check", "new", "plan", "run"]


def check(recipe: RecipePath, set_: Sets = None) -> None:
    """Find every fault in a recipe at once.

    Builds the network to match patterns against it; trains and measures nothing.
    """
    from pipeline.preflight import preflight, preflight_search

    loaded, document = _load(recipe, set_)
    device = _reach()
    preflight(loaded, document, device, remote=False)
    preflight_search(loaded, document)
    _warn(loaded, document, device)
    tell(f"{recipe}: no faults")


def plan(recipe: RecipePath, set_: Sets = None) -> None:
    """Show the steps: stored already, or to be run.

    For a prune to a budget also what may go from the network, and what stays whole: it is built and traced for that.
    """
    from pipeline.outlook import outlook
    from pipeline.plan import plan as lay_out
    from pipeline.report.terminal import print_outlook, print_plan

    loaded, document = _load(recipe, set_)
    laid = lay_out(loaded, document.folder)
    kept, screen = store(), console(stdout=True)
    rows = [(step.title, step.key, kept.find(step.key) is not None) for step in laid.steps]
    print_plan(rows, laid, screen)
    for told, reasons in outlook(loaded, document.folder, laid, kept):
        print_outlook(told, reasons, screen)
    _warn(loaded, document, _reach())


def run(
    recipe: RecipePath,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report and artifacts.", show_default="runs/<recipe name>")
    ] = None,
    set_: Sets = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute every step again, whatever is stored.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe and judge what comes out."""
    from pipeline.report.progress import progress
    from pipeline.report.terminal import print_report
    from pipeline.run import run as run_recipe

    screen = console()
    with progress(screen) as show, redirect_stdout(sys.stderr):  # what a user's own code prints is not for --json
        report = run_recipe(recipe, out, overrides(set_), fresh=fresh, listener=heeding(show))
    out = out or Path("runs") / report.name
    print_report(report, screen, Path(f"{out}.partial") if report.verdict == "failed" else out)
    if as_json:
        put_json(report.model_dump_json(indent=1))
    raise typer.Exit(EXIT_CODES[report.verdict])


def new(name: Annotated[str, typer.Argument(help="Name of the recipe; NAME.yaml is written.")]) -> None:
    """Write a recipe to start from. An existing file is never overwritten."""
    from pipeline.recipe import TEMPLATE, load_text
    from targets.errors import InputError

    path = Path(f"{name.removesuffix('.yaml')}.yaml")
    text = TEMPLATE.format(name=path.stem)
    load_text(text, str(path))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} exists", help="choose another name, or remove the file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    tell(f"wrote {path}; next: attar check {path}")


def _load(path: Path, sets: list[str] | None) -> tuple[Recipe, Document]:
    from pipeline.recipe import load

    return load(path, overrides(sets))


def _reach() -> Callable[[Target], Device]:
    """How targets' devices are reached: each is asked once what it is."""
    from targets.measure import connect

    devices: dict[str, Device] = {}
    return lambda target: devices.setdefault(target.name, connect(target))


def _warn(recipe: Recipe, document: Document, device: Callable[[Target], Device]) -> None:
    """Says what is no fault and will still decide the verdict."""
    from pipeline.validate import strange

    if recipe.search is not None and find_spec("optuna") is None:
        tell("note: attar search needs optuna, not installed here: pip install 'attar[search]'")
    for target in recipe.resolved_targets(document.folder):
        if target.device != "local":
            tell(f"note: {target.name} is not looked at here: `attar run` reaches {target.device} first of all")
        elif why := strange(target, device(target)):
            tell(f"note: {why}: its numbers will be estimates, and its verdict at best inconclusive")
