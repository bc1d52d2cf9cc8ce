"""`attar targets`: the shipped ones, one of them, or a proposal for a machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.shared import console

__all__ = ["targets_app"]

targets_app = typer.Typer(help="List targets, show one, or detect a machine.")


@targets_app.callback()
def targets(context: typer.Context) -> None:
    """List the shipped targets."""
    if context.invoked_subcommand is None:
        from pipeline.report.console import print_table
        from targets.target import load, shipped

        rows = [(name, load(name).summary) for name in shipped()]
        print_table(("target", "what it is"), rows, console(stdout=True))


@targets_app.command("show")
def targets_show(name: str) -> None:
    """Show one target: runtime, int8 rules, ceilings, meter, default budget."""
    import yaml

    from targets.target import load

    values = load(name, Path.cwd()).model_dump(mode="json")
    sys.stdout.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


@targets_app.command("detect")
def targets_detect(
    device: Annotated[str, typer.Option(help="local, or ssh://[user@]host[:port].")] = "local",
    name: Annotated[str, typer.Option(help="Name of the profile.", show_default="from the device")] = "",
    python: Annotated[str, typer.Option(help="The Python there that has onnxruntime.", show_default="python3")] = "",
) -> None:
    """Propose a profile for this machine or another: attar targets detect > board.yaml."""
    from targets.detect import machine, propose

    sys.stdout.write(propose(*machine(device, name, python)))
