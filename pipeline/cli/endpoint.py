"""`attar probe`: does a running server serve an artifact as it was judged, and what does serving add?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.shared import AsJson, console, put_json, say

__all__ = ["probe"]


def probe(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="http://HOST:PORT[/v2/models/NAME[/versions/N]] or grpc://HOST:PORT/NAME.",
            show_default=False,
        ),
    ],
    artifact: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder of the artifact that is served there: RUN/TARGET.", show_default=False
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The model's name there, where the URL has none.", show_default="the artifact's"
        ),
    ] = "",
    seconds: Annotated[float, typer.Option(metavar="N", help="How long to time requests, in all; 1 to 3600.")] = 10,
    clients: Annotated[
        int, typer.Option(metavar="N", help="How many ask at once while throughput is counted; 1 to 64.")
    ] = 4,
    as_json: AsJson = False,
) -> None:
    """Ask a running server for the answers that lie with an artifact, and time it beside the bare runtime.

    Any server that speaks the Open Inference Protocol v2: Triton, KServe, MLServer, OpenVINO Model Server.

    Exit code 0: equal answers (or close ones, from another machine); 1: they differ; 2: unusable input; 3: the server
    does not answer.
    """
    from pipeline.endpoint import probe as ask
    from pipeline.report.endpoint import render

    found = ask(url, artifact, model=name, seconds=seconds, clients=clients, say=say)
    console().print(render(found))
    if as_json:
        put_json(found.model_dump_json(indent=1))
    raise typer.Exit(1 if found.verdict == "differs" else 0)
