"""The application. Errors become exit codes here, and nowhere else.

0  the verdict is met             1  missed        4  inconclusive: the samples cannot decide
2  unusable input                 3  a step broke  130  interrupted; the same command goes on where it stopped
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pipeline.cli import interruption
from pipeline.cli.about import doctor, schema
from pipeline.cli.endpoint import probe
from pipeline.cli.evidence import bom, pull, sign, verify
from pipeline.cli.profile import profile
from pipeline.cli.recipes import check, new, plan, run
from pipeline.cli.search import search
from pipeline.cli.shared import tell
from pipeline.cli.ship import ship
from pipeline.cli.stages import stages_app
from pipeline.cli.targets import targets_app
from pipeline.cli.validate import validate

__all__ = ["app", "main"]

app = typer.Typer(
    help="Budgets in, artifact out: compress a network until it fits a device, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to wake than everything else that --help needs
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        sys.stdout.write(f"attar {version('attar')}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (check, plan, run, search, profile, validate, ship, probe, sign, verify, pull, bom, new, doctor, schema):
    app.command()(command)
app.add_typer(targets_app, name="targets", invoke_without_command=True)
app.add_typer(stages_app, name="stages", invoke_without_command=True)


def main() -> None:
    """Entry point: runs a command and turns every way it can end into an exit code."""
    interruption.listen()
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
        tell(f"a module that the recipe names ended the program: sys.exit({end.code!r})")
        return 3
    except Exception as error:
        return _told(error)
    if code == 130:  # typer turns Ctrl-C into this code itself, or into Abort, by its version
        tell("\ninterrupted; what was finished is stored, and the same command goes on from there")
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> int:
    """Says what went wrong; returns the exit code."""
    from targets.errors import AttarError

    if isinstance(error, AttarError):
        tell(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        tell(f"{error.filename or 'writing'}: {error.strerror}; what was finished is stored")
        return 3
    if hasattr(error, "show"):  # wrong words on the command line; typer brings its own click, which has no public name
        error.show()
        return 2
    import traceback

    traceback.print_exception(error)
    tell("this is a fault in attar, not in your recipe; please report it with the lines above")
    return 3
