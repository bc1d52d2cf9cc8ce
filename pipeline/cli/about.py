"""`attar doctor` and `schema`: what attar finds here, and what recipes look like."""

from __future__ import annotations

import sys

import typer

from pipeline.cli.shared import console, store

__all__ = ["doctor", "schema"]


def doctor() -> None:
    """Show what attar finds on this machine."""
    from pipeline.doctor import findings
    from pipeline.report.console import print_table

    rows, fine = findings(store())
    print_table(("what", "found", "remark"), rows, console(stdout=True))
    if not fine:
        raise typer.Exit(3)


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from pipeline.schema import schema_text

    sys.stdout.write(schema_text())
