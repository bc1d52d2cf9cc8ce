"""`attar profile`: where a model's time goes, on any target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.shared import AsJson, console, put_json, tell

if TYPE_CHECKING:
    from pipeline.report.profile_model import Profile

__all__ = ["profile"]


def profile(
    model: Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)],
    target: Annotated[str, typer.Option(help="Where to measure: a target's name or file.")] = "local",
    device: Annotated[str, typer.Option(help="local, or ssh://[user@]host[:port].", show_default=False)] = "",
    against: Annotated[
        list[Path] | None, typer.Option(help="Another ONNX file, measured in turns with the first. Repeatable.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes to sweep over.", show_default="1")] = "",
    threads: Annotated[
        str, typer.Option(metavar="N,N,...", help="Thread counts to sweep over.", show_default="the target's")
    ] = "",
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=SHAPE|FILE", help="x=1x3x224x224, or x=FILE.npy. Repeatable."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for measuring latencies, over all models.")] = 4.0,
    top: Annotated[int, typer.Option(min=0, help="Operators of each model to show.")] = 10,
    as_json: AsJson = False,
    csv: Annotated[Path | None, typer.Option(help="Write a line per operator.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page.", show_default=False)] = None,
) -> None:
    """Measure a model, operator by operator, on this machine or another."""
    from pipeline.profile import profile as measure
    from pipeline.profile import target_for
    from pipeline.report.profile_terminal import render

    _can_write([path for path in (csv, html) if path is not None], [model, *(against or ())])
    found = measure(
        model,
        target_for(target, device),
        against=against or (),
        inputs=inputs or (),
        batches=_counts("--batch", batch),
        threads=_counts("--threads", threads),
        seconds=seconds,
        say=tell,
    )
    _write(found, csv, html)
    console().print(render(found, top))
    for path in filter(None, (csv, html)):
        tell(f"wrote {path}")
    if as_json:
        put_json(found.model_dump_json(indent=1))


def _write(found: Profile, csv: Path | None, html: Path | None) -> None:
    from pipeline.profile import csv_text
    from pipeline.report.profile_html import render

    if csv is not None:
        csv.write_text(csv_text(found), encoding="utf-8")
    if html is not None:
        html.write_text(render(found), encoding="utf-8")


def _can_write(paths: list[Path], models: list[Path]) -> None:
    """Before measuring, not after."""
    from targets.errors import InputError

    taken = {path.resolve(): "a model that is measured" for path in models}
    for path in paths:
        _is_writable(path)
        if found := taken.get(path.resolve()):
            raise InputError(f"{path} is {found}, and would be overwritten", help="give the path of another file")
        taken[path.resolve()] = "written twice"


def _is_writable(path: Path) -> None:
    from targets.errors import InputError

    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: {path.absolute().parent} is no folder"
        raise InputError(f"{path} {what}", help="give the path of a file in an existing folder")


def _counts(option: str, text: str) -> list[int]:
    from targets.errors import InputError

    parts = [part.strip() for part in text.split(",") if text]
    if any(not (part.isascii() and part.isdigit()) for part in parts):
        raise InputError(f"{option} {text!r} must be numbers with commas between them", help=f"{option} 1,8,32")
    return [int(part) for part in parts]
