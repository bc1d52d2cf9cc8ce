"""`attar ship`: an artifact into a server's model repository, or to a registry."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.shared import AsJson, put_json, say, tell

if TYPE_CHECKING:
    from pipeline.ship import Shipped

__all__ = ["ship"]

_REGISTRY = re.compile(r"[\w.-]+:[0-9]+(/.*)?|[\w-]+(\.[\w-]+)+/.*:[\w.-]+", re.ASCII)
"""HOST:PORT[/NAME:TAG], or HOST.DOMAIN/NAME:TAG."""


def ship(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of an artifact: RUN/TARGET.", show_default=False)
    ],
    dest: Annotated[
        str,
        typer.Argument(
            metavar="DEST",
            help="The server's model repository, a folder. With oci: HOST[:PORT]/NAME:TAG. With mlflow: its address.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="A server: triton, mlserver, kserve or openvino. Or a registry: oci or mlflow.",
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]  # typer's way to say that it must be given
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model's name there; none with oci.", show_default="the recipe's"),
    ] = None,
    even_if: Annotated[
        str,
        typer.Option(
            metavar="VERDICT",
            help="inconclusive or missed: ship it although that is its verdict.",
            show_default=False,
        ),
    ] = "",
    server_version: Annotated[
        str,
        typer.Option(
            metavar="VERSION",
            help="The server's version, as its makers number it: 25.10 of Triton.",
            show_default="the newest known",
        ),
    ] = "",
    max_batch: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=4096, help="The largest batch that the server may build of single requests."
        ),
    ] = 8,
    delay_us: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=10_000_000, help="Microseconds that a request may wait to be joined with others."
        ),
    ] = 0,
    instances: Annotated[
        int, typer.Option(metavar="N", min=1, max=1024, help="Copies of the model that serve at once.")
    ] = 1,
    keep_config: Annotated[
        bool,
        typer.Option("--keep-config", help="With triton or kserve: a config.pbtxt that is there stays as it is."),
    ] = False,
    load: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="http://HOST:PORT of a running Triton with explicit model control that reads DEST: have it load the "
            "new version, once its answers are proven there.",
            show_default=False,
        ),
    ] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="With oci: the registry speaks plain HTTP.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ship an artifact to a server, or to a registry.

    A new version is written beside those that are served and put in place whole; none is ever written over.
    An artifact whose verdict is not met stays, unless --even-if names its verdict.

    Exit code 0: shipped; 2: unusable input, and nothing was written; 3: the server or registry does not answer, or
    refuses it, or answers otherwise than the artifact did.
    """
    from targets.errors import Fault, InputError
    from targets.servers.shipment import Options

    if not dest.strip():
        help = "give the model repository, such as models/; . is the current folder"
        raise InputError(Fault("is empty", "DEST", help=help))
    options = Options(server_version, max_batch, delay_us, instances, keep_config)
    registry = to in ("oci", "mlflow")
    plain = Options()
    of_servers = "which is a registry and no server"
    joins = registry or to == "openvino"
    alone = of_servers if registry else "which joins no requests"
    config = of_servers if registry else "which has no config.pbtxt"
    _unused(
        to,
        {
            "--load": (registry and bool(load), of_servers),
            "--server-version": (registry and bool(server_version), of_servers),
            "--max-batch": (joins and max_batch != plain.max_batch, alone),
            "--delay-us": (joins and delay_us != plain.delay_us, alone),
            "--keep-config": (keep_config and to in ("oci", "mlflow", "mlserver", "openvino"), config),
            "--instances": (registry and instances != plain.instances, of_servers),
            "--name": (to == "oci" and name is not None, "where HOST/NAME:TAG names the model"),
            "--insecure": (to != "oci" and insecure, "which is no OCI registry"),
        },
    )
    again = _again(context)
    if registry:
        _register(folder, to, dest, name, even_if, again, insecure, as_json)
        return
    _no_address(dest)
    from pipeline.ship import ship as bring

    found = bring(folder, to, Path(dest), name=name, options=options, even_if=even_if, load=load, again=again, say=say)
    _tell(found, folder)
    if as_json:
        put_json(found.model_dump_json(indent=1))


def _tell(found: Shipped, folder: Path) -> None:
    tell(f"{found.name} version {found.model_version} lies in", found.folder)
    if found.verdict != "met":
        tell(f"its verdict is {found.verdict}: its manifest says so under shipped_as")
    for note in found.notes:
        tell(f"  {note}")
    if found.start:
        tell("  start it with:", found.start)
    if found.loaded:
        instead = f", in place of version {found.replaced}" if found.replaced else ""
        tell(f"{found.loaded} serves it{instead}: {found.proven}")
    after = "next:" if found.url else "next, at the URL that the cluster gives it:"
    url = found.url or f"URL/v2/models/{found.name}"
    tell(after, f"attar probe {url} --artifact {shlex.quote(str(folder))}")


def _again(context: typer.Context) -> str:
    """The command as it was given, but for --even-if."""
    words = ["attar", "ship"]
    for parameter in context.command.params:
        given, name = context.params.get(parameter.name or ""), parameter.opts[-1]
        source = context.get_parameter_source(parameter.name or "")
        if name == "--even-if" or source is None or source.name != "COMMANDLINE":
            continue
        words += [name] * (parameter.param_type_name == "option") + [str(given)] * (given is not True)
    return shlex.join(words)


def _no_address(dest: str) -> None:
    """Refuses what would become a folder of a strange name, where an address was meant."""
    from targets.errors import Fault, InputError

    what = ""
    if "://" in dest:
        what = "is an address, and a server's model repository is a folder that it reads"
        help = "give that folder; --load URL has a running Triton load the model from it; a registry: --to oci, mlflow"
    elif _REGISTRY.fullmatch(dest) and not Path(dest).exists():
        what = "looks like a place in a registry, and there is no such folder"
        help = f"did you mean --to oci? If it is to be a folder: {shlex.quote(f'./{dest}')}"
    if what:
        raise InputError(Fault(what, file=dest, help=help))


def _unused(to: str, given: Mapping[str, tuple[bool, str]]) -> None:
    """Refuses an option that would be ignored without a word. `given`: whether it is, and why it means nothing."""
    from targets.errors import Fault, InputError

    faults = [
        Fault(f"means nothing to {to}, {why}", key, help="leave it out") for key, (said, why) in given.items() if said
    ]
    if faults:
        raise InputError(faults)


def _register(
    folder: Path, to: str, dest: str, name: str | None, even_if: str, again: str, insecure: bool, as_json: bool
) -> None:
    from pipeline.shipments import shipment

    ours = shipment(folder, name, even_if=even_if, again=again)
    if to == "oci":
        from pipeline.registries.oci import push

        digest = push(folder, dest, insecure=insecure, say=say)
        found = {"version": 1, "to": to, "ref": dest, "digest": digest}
        tell("next:", f"attar pull {dest} NEWDIR{' --insecure' if insecure else ''}")
    else:
        from pipeline.registries.mlflow import register

        number = register(folder, dest, name or "", say=say)
        found = {"version": 1, "to": to, "uri": dest, "model_version": number}
        model = f"mlflow artifacts download -u models:/{ours.name}/{number} -d NEWDIR"
        tell("next:", f"MLFLOW_TRACKING_URI={shlex.quote(dest)} {model}")
    if as_json:
        put_json(json.dumps(found, indent=1))
