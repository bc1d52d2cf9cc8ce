"""`attar ship`: an artifact into a server's model repository, or to a registry."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.shared import AsJson, say, tell

if TYPE_CHECKING:
    from pipeline.ship import Shipped

__all__ = ["ship"]


def ship(
    folder: Annotated[Path, typer.Argument(help="Folder of an artifact: RUN/TARGET.", show_default=False)],
    dest: Annotated[
        str,
        typer.Argument(
            help="The server's model repository, a folder. With oci: HOST[:PORT]/NAME:TAG. With mlflow: its URI.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str, typer.Option(help="triton, mlserver, kserve or openvino; oci or mlflow.", show_default=False)
    ] = ...,  # type: ignore[assignment]  # typer's way to say that it must be given
    name: Annotated[str, typer.Option(help="Of the model on the server.", show_default="the recipe's")] = "",
    server_version: Annotated[
        str, typer.Option(help='Of the server, as its makers number it: "25.10".', show_default="the newest known")
    ] = "",
    max_batch: Annotated[
        int, typer.Option(min=1, max=4096, help="The largest batch that the server may build of single requests.")
    ] = 8,
    delay_us: Annotated[
        int, typer.Option(min=0, max=10_000_000, help="Microseconds that a request may wait for others.")
    ] = 0,
    instances: Annotated[int, typer.Option(min=1, max=1024, help="Copies of the model that serve at once.")] = 1,
    even_if: Annotated[
        str, typer.Option(metavar="VERDICT", help="Ship it although it is inconclusive or missed.", show_default=False)
    ] = "",
    load: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="http://HOST:PORT of a running Triton with explicit model control that reads DEST: have it load the "
            "new version, once its answers are proven there.",
            show_default=False,
        ),
    ] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="oci: the registry speaks plain HTTP.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ship an artifact to a server, or to a registry.

    A new version is written beside those that are served and put in place whole; none is ever written over.
    An artifact whose verdict is not met stays, unless --even-if names its verdict.
    """
    from targets.servers.shipment import Options

    options = Options(server_version, max_batch, delay_us, instances)
    registry = to in ("oci", "mlflow")
    plain = Options()
    _unused(
        to,
        {
            "--load": registry and bool(load),
            "--server-version": registry and bool(server_version),
            "--max-batch": registry and max_batch != plain.max_batch,
            "--delay-us": registry and delay_us != plain.delay_us,
            "--instances": registry and instances != plain.instances,
            "--name": to == "oci" and bool(name),
            "--insecure": to != "oci" and insecure,
        },
    )
    if registry:
        _register(folder, to, dest, name, even_if, insecure, as_json)
        return
    from pipeline.ship import ship as bring

    found = bring(folder, to, Path(dest), name=name, options=options, even_if=even_if, load=load, say=say)
    _tell(found, folder)
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=1) + "\n")


def _tell(found: Shipped, folder: Path) -> None:
    tell(f"{found.name} version {found.model_version} lies in {found.folder}")
    if found.verdict != "met":
        tell(f"its verdict is {found.verdict}: its manifest says so under shipped_as")
    for note in found.notes if not found.loaded else ():
        tell(f"  {note}")
    if found.loaded:
        instead = f", in place of version {found.replaced}" if found.replaced else ""
        tell(f"{found.loaded} serves it{instead}: {found.proven}")
    url = f"{found.loaded.rstrip('/') or 'http://HOST:PORT'}/v2/models/{found.name}"
    tell(f"next: attar probe {url} --artifact {folder}")


def _unused(to: str, given: Mapping[str, bool]) -> None:
    """Refuses an option that would be ignored without a word."""
    from targets.errors import Fault, InputError

    kind = {"oci": "is a registry and no server", "mlflow": "is a registry and no server"}.get(to, "is no OCI registry")
    faults = [Fault(f"means nothing to {to}, which {kind}", key, help="leave it out") for key in given if given[key]]
    if faults:
        raise InputError(faults)


def _register(folder: Path, to: str, dest: str, name: str, even_if: str, insecure: bool, as_json: bool) -> None:
    from pipeline.ship import shipment

    shipment(folder, name, even_if=even_if)
    if to == "oci":
        from pipeline.registries.oci import push

        digest = push(folder, dest, insecure=insecure, say=say)
        found = {"version": 1, "to": to, "ref": dest, "digest": digest}
        tell(f"next: attar pull {dest} NEWDIR{' --insecure' if insecure else ''}; by digest: ...@{digest}")
    else:
        from pipeline.registries.mlflow import register

        number = register(folder, dest, name, say=say)
        found = {"version": 1, "to": to, "uri": dest, "model_version": number}
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
