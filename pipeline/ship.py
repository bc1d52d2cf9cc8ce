"""Brings a judged artifact to a server: `attar ship`.

    artifact folder -> Shipment -> a model that the server's version takes -> Layout -> published in DEST

What may leave: see `pipeline.shipments`. With `load` a Triton has the new version served once it is proven there: see
`pipeline.takeover`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline import evidence, published
from pipeline.shipments import CHANGED, leaving
from pipeline.takeover import control_of, proven
from targets.budget import Verdict
from targets.documents import Frozen
from targets.errors import Fault, InputError, nearest
from targets.servers import SERVERS, client
from targets.servers.disk import CANDIDATE
from targets.servers.lowering import fitted, told
from targets.servers.publish import publish
from targets.servers.shipment import Layout, Options, Shipment
from targets.servers.versions import assumed
from targets.sha256sums import digest, render

__all__ = ["Shipped", "ship"]


class Shipped(Frozen):
    """What was shipped, and where it lies.

    Attributes:
        sha256: of the model that was published; another than the artifact's where it was converted for the server.
        proven: what the server answered to the golden sample, in words; empty where it was not asked.
        replaced: the version that served before, if one did.
        start: the command that starts a server over it; empty where one serves it now.
        url: where the model answers, once that command runs on this machine; empty: that is not known here.
    """

    version: Literal[1] = 1
    server: str
    name: str
    model_version: int
    folder: str
    sha256: str
    verdict: Verdict
    proven: str = ""
    loaded: str = Field("", description="the server that serves it now")
    replaced: int | None = None
    start: str = ""
    url: str = ""
    notes: tuple[str, ...] = ()


def ship(
    folder: Path,
    server: str,
    dest: Path,
    *,
    name: str | None = None,
    options: Options | None = None,
    even_if: str = "",
    load: str = "",
    again: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Shipped:
    """Publishes an artifact for a server, and with `load` has it served once it is proven there.

    Args:
        folder: RUN/TARGET.
        server: one of `targets.servers.SERVERS`.
        dest: the server's model repository; not in a run's folder, nor in an artifact's or a model's.
        load: http://host:port of a Triton that reads `dest` and was started with --model-control-mode=explicit.
        again: see `leaving`.
        say: told what is done.

    Raises:
        InputError: see `leaving`, the server's layout, and `targets.servers.publish`.
        DeviceError: with `load`: the server did not answer, refused the model, or answered something else than the
            artifact did. What was served before is served still.
    """
    options = options or Options()
    if server not in SERVERS:
        help = nearest(server, [*SERVERS, "oci", "mlflow"], command="attar ship --help")
        raise InputError(Fault(f"no server is called {server!r}", "--to", help=help))
    if load and server != "triton":
        raise InputError(Fault(f"{server} takes no request to load a model", "--load", help="leave --load out"))
    control = control_of(load) if load else None
    left = leaving(folder, name, even_if=even_if, again=again)
    found, verdict = left.shipment, left.verdict
    _apart(dest, found.name)
    ours = fitted(found, server, options.server_version)
    ours = _marked(found, ours, server, verdict)
    layout = _sealed(SERVERS[server](ours, options), ours)
    layout = replace(layout, shared={**layout.shared, "client.py": client.source(ours, layout)})
    if control:
        candidate = replace(ours, name=f"{CANDIDATE}{ours.name}")
        trial = _sealed(SERVERS[server](candidate, options), candidate)
        into, words, before = proven(ours, layout, trial, candidate.name, dest, control, say)
    else:
        into, words, before = publish(layout, dest, ours.name), "", None
    at = control.url if control else f"http://localhost:{layout.port}" if layout.port else ""
    notes = (
        assumed(server, options.server_version),
        told(found, ours),
        *layout.notes,
        _signature(left.signed, layout, into),
    )
    return Shipped(
        server=server,
        name=ours.name,
        model_version=int(into.name),
        folder=str(into),
        sha256=ours.model.sha256,
        verdict=verdict,
        proven=words,
        loaded=control.url if control else "",
        replaced=before,
        start="" if control else layout.start(shlex.quote(str(dest))),
        url=f"{at}/v2/models/{ours.name}" if at else "",
        notes=tuple(note for note in notes if note),
    )


def _apart(dest: Path, name: str) -> None:
    """Refuses a repository in a folder whose files are accounted for: one more would spoil it."""
    at = Path(os.path.realpath(dest))
    for folder, kind in published.accounted(at / name):
        if folder != at / name or kind != published.A_MODEL:
            help = "give a folder of its own, such as models/; `attar ship` makes it"
            what = f"is {kind}: a model repository in it would spoil it"
            raise InputError(Fault(what, file=str(folder), help=help))


def _marked(found: Shipment, ours: Shipment, server: str, verdict: Verdict) -> Shipment:
    """The manifest says what left otherwise than it was judged, or without having met its budget.

    Digests are written anew then, and a signature, which was given to something else, stays behind.
    """
    same = ours.model.sha256 == found.model.sha256
    if same and verdict == "met":
        return ours
    papers = {name: data for name, data in ours.papers.items() if name not in (evidence.SUMS, evidence.SIGNATURE)}
    manifest = json.loads(papers[evidence.MANIFEST])
    manifest["shipped_as"] = {"name": ours.name, "server": server, "verdict": verdict}
    if not same:
        facts = {**asdict(ours.model), "path": evidence.MODEL}
        manifest["shipped_as"]["converted_from"] = manifest["model"]
        manifest |= {"model": facts, "files": {**manifest["files"], evidence.MODEL: ours.model.sha256}}
    papers[evidence.MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    papers[evidence.SUMS] = render({**papers, evidence.MODEL: ours.model.sha256})
    return replace(ours, papers=papers)


def _sealed(layout: Layout, ours: Shipment) -> Layout:
    """The layout with files as bytes: what is published is what was checked, whatever happens to the file meanwhile.

    Raises:
        InputError: the model's file has changed since.
    """
    held: Mapping[str, Any] = {
        name: evidence.contents(content) if isinstance(content, Path) else content
        for name, content in layout.version.items()
    }
    if digest(held[evidence.MODEL]) != ours.model.sha256:
        raise InputError(Fault(CHANGED, file=str(ours.model.path)))
    return replace(layout, version=held)


def _signature(signed: bool, layout: Layout, into: Path) -> str:
    """What becomes of an artifact's signature in a version, where that does not hold there any more."""
    again = f"`attar sign {shlex.quote(str(into))} --key KEY`"
    if not signed:
        return ""
    if evidence.SIGNATURE not in layout.version:
        return f"the artifact's signature stays behind, for it covers other files than were shipped: {again}"
    if not layout.added:
        return ""
    left = f"the artifact's signature does not cover {', '.join(sorted(layout.added))}, which the server runs by"
    return f"{left}: `attar verify --key` passes once you sign the version: {again}"
