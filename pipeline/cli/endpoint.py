"""`attar probe`: does a running server serve an artifact as it was judged, and what does serving add?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.shared import AsJson, console, say

__all__ = ["probe"]


def probe(
    url: Annotated[
        str,
        typer.Argument(
            help="http://HOST:PORT[/v2/models/NAME[/versions/N]] or grpc://HOST:PORT/NAME.", show_default=False
        ),
    ],
    artifact: Annotated[Path, typer.Option(help="Folder of the artifact served there.", show_default=False)],
    name: Annotated[
        str, typer.Option(help="Its name on the server, where the URL has none.", show_default="the artifact's")
    ] = "",
    seconds: Annotated[float, typer.Option(help="For all that is timed, about.")] = 10,
    clients: Annotated[int, typer.Option(help="That ask at once while throughput is counted.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Ask a running server for the answers that lie with an artifact, and time it beside the bare runtime.

    Any server that speaks the Open Inference Protocol v2: Triton, KServe, MLServer, OpenVINO Model Server.
    Exit code 0: equal answers; 1: they differ; 2: unusable input; 3: the server does not answer.
    """
    from pipeline.endpoint import probe as ask
    from pipeline.report.endpoint import render

    found = ask(url, artifact, model=name, seconds=seconds, clients=clients, say=say)
    console().print(render(found))
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=1) + "\n")
    raise typer.Exit(1 if found.verdict == "differs" else 0)
