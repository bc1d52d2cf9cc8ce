"""The command `attar`. Errors become exit codes here, and nowhere else.

    0  the verdict is met             1  missed        4  inconclusive: the samples cannot decide
    2  unusable input                 3  a step broke  130  interrupted; the same command goes on where it stopped

Heavy libraries wake inside the commands that need them: `attar --help` imports none.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from targets.documents import Document

__all__ = ["app", "main"]

EXIT_CODES = {"met": 0, "missed": 1, "failed": 3, "inconclusive": 4}

app = typer.Typer(
    help="Budgets in, artifact out: compress a network until it fits a device, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to wake than everything else that --help needs
)
targets_app = typer.Typer(help="List targets, show one, or detect this machine.")
stages_app = typer.Typer(help="List the stages, or show what one can be told.")
app.add_typer(targets_app, name="targets", invoke_without_command=True)
app.add_typer(stages_app, name="stages", invoke_without_command=True)

RecipePath = Annotated[Path, typer.Argument(help="Recipe file (YAML).", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set stages.0.distill.epochs=2"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else there.")]


@app.command()
def check(recipe: RecipePath, set_: Sets = None) -> None:
    """Find every fault in a recipe at once.

    Builds the network to match patterns against it; trains and measures nothing.
    """
    from pipeline.preflight import preflight

    loaded, document = _load(recipe, set_)
    preflight(loaded, document)
    _warn(loaded, document)
    _tell(f"{recipe}: no faults")


@app.command()
def plan(recipe: RecipePath, set_: Sets = None) -> None:
    """Show the steps: stored already, or to be run."""
    from pipeline.plan import plan as lay_out
    from pipeline.report.terminal import print_plan

    loaded, document = _load(recipe, set_)
    laid = lay_out(loaded, document.folder)
    store = _store()
    rows = [(step.title, step.key, store.find(step.key) is not None) for step in laid.steps]
    print_plan(rows, laid, _console(stdout=True))
    _warn(loaded, document)


@app.command()
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

    console = _console()
    with progress(console) as show, redirect_stdout(sys.stderr):  # what a user's own code prints is not for --json
        report = run_recipe(recipe, out, _overrides(set_), fresh=fresh, listener=show)
    out = out or Path("runs") / report.name
    print_report(report, console, Path(f"{out}.partial") if report.verdict == "failed" else out)
    if as_json:
        sys.stdout.write(report.model_dump_json(indent=1) + "\n")
    raise typer.Exit(EXIT_CODES[report.verdict])


@targets_app.callback()
def targets(context: typer.Context) -> None:
    """List the shipped targets."""
    if context.invoked_subcommand is None:
        from pipeline.report.terminal import print_table
        from targets.target import load, shipped

        rows = [(name, load(name).summary) for name in shipped()]
        print_table(("target", "what it is"), rows, _console(stdout=True))


@targets_app.command("show")
def targets_show(name: str) -> None:
    """Show one target: runtime, int8 rules, ceilings, meter, default budget."""
    from targets.target import load

    _print_yaml(load(name, Path.cwd()).model_dump(mode="json"))


@targets_app.command("detect")
def targets_detect() -> None:
    """Propose a profile for this machine, as YAML to be saved beside a recipe."""
    from targets.target import load

    _print_yaml(load("local").model_dump(mode="json") | {"name": "my-device"})


@stages_app.callback()
def stages(context: typer.Context) -> None:
    """List the stages in the order in which they are usually chained."""
    if context.invoked_subcommand is None:
        from pipeline.report.terminal import print_table
        from stages import STAGES

        rows = [(s.name, f"{s.takes} -> {s.gives}", s.summary) for s in STAGES.values()]
        print_table(("stage", "form", "what it does"), rows, _console(stdout=True))


@stages_app.command("show")
def stages_show(name: str) -> None:
    """Show what a stage can be told."""
    from pipeline.report.terminal import print_table
    from stages import STAGES
    from targets.errors import InputError, nearest

    if name not in STAGES:
        raise InputError(f"there is no stage {name!r}", help=nearest(name, STAGES, command="attar stages"))
    schema = STAGES[name].Config.model_json_schema()
    rows = []
    for key, prop in schema["properties"].items():
        rows.append((key, _allowed(prop), _default(prop), prop.get("description", "")))
        inner = prop.get("items", {}).get("$ref", "").rpartition("/")[2]
        for part, told in schema.get("$defs", {}).get(inner, {}).get("properties", {}).items():
            rows.append((f"{key}[].{part}", _allowed(told), _default(told), told.get("description", "")))
    console = _console(stdout=True)
    console.print(f"{name}: {STAGES[name].summary}")
    print_table(("key", "allowed", "default", "meaning"), rows, console)


@app.command()
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
    _tell(f"wrote {path}; next: attar check {path}")


@app.command()
def doctor() -> None:
    """Show what attar finds on this machine."""
    from pipeline.doctor import findings
    from pipeline.report.terminal import print_table

    rows, fine = findings(_store())
    print_table(("what", "found", "remark"), rows, _console(stdout=True))
    if not fine:
        raise typer.Exit(3)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from pipeline.schema import schema_text

    sys.stdout.write(schema_text())


def main() -> None:
    """Entry point: runs a command and turns every way it can end into an exit code."""
    sys.exit(_guarded(sys.argv[1:]))


def _guarded(arguments: list[str]) -> int:
    try:
        code = app(arguments, prog_name="attar", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as end:  # attar never raises it: a user's module did
        _tell(f"a module that the recipe names ended the program: sys.exit({end.code!r})")
        return 3
    except Exception as error:
        return _told(error)
    if code == 130:  # typer turns Ctrl-C into this code itself, or into Abort, by its version
        _tell("\ninterrupted; what was finished is stored, and the same command goes on from there")
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> int:
    """Says what went wrong; returns the exit code."""
    from targets.errors import AttarError

    if isinstance(error, AttarError):
        _tell(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        _tell(f"{error.filename or 'writing'}: {error.strerror}; what was finished is stored")
        return 3
    if hasattr(error, "show"):  # wrong words on the command line; typer brings its own click, which has no public name
        error.show()
        return 2
    import traceback

    traceback.print_exception(error)
    _tell("this is a fault in attar, not in your recipe; please report it with the lines above")
    return 3


def _load(path: Path, sets: list[str] | None) -> tuple[Recipe, Document]:
    from pipeline.recipe import load

    return load(path, _overrides(sets))


def _warn(recipe: Recipe, document: Document) -> None:
    """Says what is no fault and will still decide the verdict."""
    from pipeline.validate import strange

    for target in recipe.resolved_targets(document.folder):
        if why := strange(target):
            _tell(f"note: {why}: its numbers will be estimates, and its verdict at best inconclusive")


def _overrides(sets: list[str] | None) -> dict[str, str]:
    from targets.errors import InputError

    overrides = {}
    for item in sets or ():
        key, sep, value = item.partition("=")
        if not sep or not key:
            raise InputError(f"--set {item!r} must look like KEY=VALUE", help="--set stages.0.distill.epochs=2")
        overrides[key] = value
    return overrides


def _store() -> Any:
    from pipeline.run import default_store
    from pipeline.store import Store

    return Store(default_store())


def _console(stdout: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=not stdout, highlight=False)


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _print_yaml(value: dict[str, Any]) -> None:
    import yaml

    sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _allowed(prop: dict[str, Any]) -> str:
    """What a key takes, in few words: choices, or the kind of value with its bounds."""
    for option in prop.get("anyOf", ()):
        if option.get("type") != "null":
            return _allowed(option)
    if choices := prop.get("enum"):
        return ", ".join(map(str, choices))
    words = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {prop[key]:g}" for key, sign in words.items() if key in prop]
    return " ".join([{"array": "list", "object": "map"}.get(kind := prop.get("type", ""), kind), *bounds])


def _default(prop: dict[str, Any]) -> str:
    default = prop.get("default", "")
    return "" if default in ("", None, [], {}) else str(default)


if __name__ == "__main__":
    main()
