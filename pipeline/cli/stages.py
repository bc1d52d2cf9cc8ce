"""`attar stages`: the list, and what each can be told."""

from __future__ import annotations

from typing import Any

import typer

from pipeline.cli.shared import console

__all__ = ["stages_app"]

stages_app = typer.Typer(help="List the stages, or show what one can be told.")


@stages_app.callback()
def stages(context: typer.Context) -> None:
    """List the stages in the order in which they are usually chained."""
    if context.invoked_subcommand is None:
        from pipeline.report.console import print_table
        from stages import STAGES

        rows = [(s.name, f"{s.takes} -> {s.gives}", s.summary) for s in STAGES.values()]
        print_table(("stage", "form", "what it does"), rows, console(stdout=True))


@stages_app.command("show")
def stages_show(name: str) -> None:
    """Show what a stage can be told."""
    from pipeline.report.console import print_table
    from stages import STAGES
    from targets.errors import InputError, nearest

    if name not in STAGES:
        raise InputError(f"there is no stage {name!r}", help=nearest(name, STAGES, command="attar stages"))
    schema = STAGES[name].Config.model_json_schema()
    rows = []
    for key, prop in schema["properties"].items():
        inner, dots = _inner(prop)
        parts = schema.get("$defs", {}).get(inner, {}).get("properties", {})
        rows.append((key, _allowed(prop), "" if parts else _default(prop), prop.get("description", "")))
        for part, told in parts.items():
            rows.append((f"{key}{dots}.{part}", _allowed(told), _default(told), told.get("description", "")))
    out = console(stdout=True)
    out.print(f"{name}: {STAGES[name].summary}")
    print_table(("key", "allowed", "default", "meaning"), rows, out)


def _inner(prop: dict[str, Any]) -> tuple[str, str]:
    """The settings that a key holds, or a list of which: (their name or "", how they are written behind the key)."""
    for option in (*prop.get("anyOf", ()), prop):
        if ref := option.get("$ref", ""):
            return ref.rpartition("/")[2], ""
    return prop.get("items", {}).get("$ref", "").rpartition("/")[2], "[]"


def _allowed(prop: dict[str, Any]) -> str:
    """What a key takes, in few words: choices, or the kind of value with its bounds."""
    for option in prop.get("anyOf", ()):
        if option.get("type") != "null":
            return _allowed(option)
    if choices := prop.get("enum") or [prop[key] for key in ("const",) if key in prop]:
        return ", ".join(map(str, choices))
    words = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {prop[key]:g}" for key, sign in words.items() if key in prop]
    return " ".join([{"array": "list", "object": "map"}.get(kind := prop.get("type", ""), kind), *bounds])


def _default(prop: dict[str, Any]) -> str:
    default = prop.get("default", "")
    return "" if default in ("", None, [], {}) else str(default)
