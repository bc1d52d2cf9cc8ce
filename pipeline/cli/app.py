"""The application. Errors become exit codes here, and nowhere else.

0  the verdict is met             1  missed        4  inconclusive: the samples cannot decide
2  unusable input                 3  a step broke  130  interrupted; run and search go on where they stopped
"""

from __future__ import annotations

import io
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

_KEEPING = {"run", "search"}  # the commands that store each step as it is finished

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
    keeps = next((word for word in arguments if not word.startswith("-")), "") in _KEEPING
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
        return _told(error, keeps)
    if code == 130:  # typer turns Ctrl-C into this code itself, or into Abort, by its version
        next_time = "what was finished is stored, and the same command goes on from there"
        tell(f"\ninterrupted; {next_time if keeps else 'the same command starts over'}")
    return code if isinstance(code, int) else 0


def _told(error: Exception, keeps: bool) -> int:
    """Says what went wrong; returns the exit code.

    Args:
        keeps: whether the command stores what it finished.
    """
    from targets.errors import AttarError, Fault

    if isinstance(error, AttarError):
        tell(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.strerror}; what was finished is stored" if keeps else error.strerror
        tell(str(Fault(what, file=str(error.filename or "writing"))))
        return 3
    if hasattr(error, "show"):  # wrong words on the command line; typer brings its own click, which has no public name
        error.show(shown := io.StringIO())
        tell(shown.getvalue().rstrip("\n"))
        return 2
    import traceback

    traceback.print_exception(error)
    tell("this is a fault in attar, not in your recipe; please report it with the lines above")
    return 3
