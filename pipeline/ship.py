"""Brings a judged artifact to a server: `attar ship`.

    artifact folder -> Shipment -> a model that the server's version takes -> Layout -> published in DEST

What does not meet its budget stays, unless it is named. With `load` a Triton has the new version served once it is
proven there: see `pipeline.takeover`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline import evidence, published, reference, signing
from pipeline.manifest import formed, of
from pipeline.takeover import proven
from stages.data import Preprocessing
from targets import artifact
from targets.budget import Verdict, worst
from targets.documents import Frozen
from targets.errors import Fault, InputError, nearest
from targets.servers import SERVERS, client
from targets.servers.control import Control
from targets.servers.disk import CANDIDATE
from targets.servers.lowering import fitted
from targets.servers.publish import publish
from targets.servers.shipment import Layout, Options, Shipment
from targets.servers.versions import assumed
from targets.sha256sums import digest, render
from targets.target import Target

__all__ = ["Shipped", "ship", "shipment"]

_CHANGED = "was changed while it was being shipped"


class Shipped(Frozen):
    """What was shipped, and where it lies.

    Attributes:
        sha256: of the model that was published; another than the artifact's where it was converted for the server.
        proven: what the server answered to the golden sample, in words; empty where it was not asked.
        replaced: the version that served before, if one did.
        start: the command that starts a server over it.
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
    notes: tuple[str, ...] = ()


def shipment(folder: Path, name: str | None = None, *, even_if: str = "") -> Shipment:
    """Reads an artifact that is to leave.

    Args:
        folder: RUN/TARGET, as `attar run` left it, or a published version.
        name: of the model on the server; None: the recipe's.
        even_if: the worst verdict that may leave: "inconclusive" or "missed"; empty: only what is met.

    Raises:
        InputError: no artifact, or one that was changed; its verdict is worse than allowed; the name is none.
    """
    return _judged(folder, name, even_if)[0]


def _judged(folder: Path, name: str | None, even_if: str) -> tuple[Shipment, Verdict]:
    """See `shipment`; and its verdict."""
    taken = evidence.taken(folder)
    manifest = of(taken)
    with formed(folder / evidence.MANIFEST, "data.preprocessing"):
        steps = Preprocessing.model_validate(manifest.data.preprocessing or {})
    _allowed(folder, manifest.verdict, even_if)
    kept = reference.parse(taken.paper(reference.NAME), folder / reference.NAME)
    chosen = manifest.recipe.name if name is None else name
    try:
        Target(name=chosen)  # the same rule: letters, digits, - _ and .
    except ValidationError:
        told = repr(chosen) if len(chosen) <= 100 else f"{chosen[:40]!r}... ({len(chosen)} characters)"
        what = f"{told} must be letters, digits, - _ and ., a letter or digit first, 100 at most: it names a folder"
        raise InputError(Fault(what, "--name", help="leave it out for the recipe's own")) from None
    model = artifact.load(folder / evidence.MODEL)
    if model.sha256 != taken.digests[evidence.MODEL]:
        raise InputError(Fault(_CHANGED, file=str(model.path)))
    _of_the_model(folder, kept, model)
    ours = Shipment(
        name=chosen,
        model=model,
        target=manifest.target,
        labels=manifest.data.classes,
        preprocessing=steps.model_dump(mode="json", exclude_unset=True),
        sample=kept.inputs,
        answers=kept.outputs,
        papers=_papers(taken),
    )
    return ours, manifest.verdict


def _papers(taken: evidence.Taken) -> dict[str, bytes]:
    """The artifact's own files but the model: what a server's layout added to a published version stays behind, and so
    does a signature that covers it."""
    stay = set(taken.added)
    if evidence.LAYOUT in signing.named(taken.papers.get(evidence.SIGNATURE, b"")):
        stay.add(evidence.SIGNATURE)
    return {file: data for file, data in taken.papers.items() if file not in stay}


def _of_the_model(folder: Path, kept: reference.Reference, model: artifact.Artifact) -> None:
    """Raises InputError where the golden sample is none of this model's inputs, or its answers none of its outputs."""
    for kind, found, value in (("input", kept.inputs, model.inputs[0]), ("output", kept.outputs, model.outputs[0])):
        fits = len(found.shape) == len(value.shape) and all(
            a == b or not isinstance(b, int) for a, b in zip(found.shape[1:], value.shape[1:], strict=True)
        )
        if not fits:
            what = f"holds {kind}s of shape {found.shape[1:]} for each example, and the model's are "
            what += f"({', '.join(map(str, value.shape[1:]))})"
            help = "run its recipe again: `attar run`"
            raise InputError(Fault(what, file=str(folder / reference.NAME), help=help))


def ship(
    folder: Path,
    server: str,
    dest: Path,
    *,
    name: str | None = None,
    options: Options | None = None,
    even_if: str = "",
    load: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Shipped:
    """Publishes an artifact for a server, and with `load` has it served once it is proven there.

    Args:
        folder: RUN/TARGET.
        server: one of `targets.servers.SERVERS`.
        dest: the server's model repository; not in a run's folder, nor in an artifact's or a model's.
        load: http://host:port of a Triton that reads `dest` and was started with --model-control-mode=explicit.
        say: told what is done.

    Raises:
        InputError: see `shipment`, the server's layout, and `targets.servers.publish`.
        DeviceError: with `load`: the server did not answer, refused the model, or answered something else than the
            artifact did. What was served before is served still.
    """
    options = options or Options()
    if server not in SERVERS:
        help = nearest(server, [*SERVERS, "oci", "mlflow"], command="attar ship --help")
        raise InputError(Fault(f"no server is called {server!r}", "--to", help=help))
    if load and server != "triton":
        raise InputError(Fault(f"{server} takes no request to load a model", "--load", help="leave --load out"))
    control = Control(load) if load else None
    found, verdict = _judged(folder, name, even_if)
    _apart(dest, found.name)
    ours = fitted(found, server, options.server_version)
    ours = _marked(found, ours, server, verdict)
    layout = _sealed(SERVERS[server](ours, options), ours)
    layout = replace(layout, shared={**layout.shared, "client.py": client.source(ours, layout)})
    notes = (assumed(server, options.server_version), *layout.notes)
    if control:
        candidate = replace(ours, name=f"{CANDIDATE}{ours.name}")
        trial = _sealed(SERVERS[server](candidate, options), candidate)
        into, words, before = proven(ours, layout, trial, candidate.name, dest, control, say)
    else:
        into, words, before = publish(layout, dest, ours.name), "", None
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
        start=layout.start(shlex.quote(str(dest))),
        notes=tuple(note for note in notes if note),
    )


def _apart(dest: Path, name: str) -> None:
    """Refuses a repository in a folder whose files are accounted for: one more would spoil it."""
    at = Path(os.path.realpath(dest))
    for folder, kind in published.accounted(at / name):
        if folder != at / name or kind != published.MODEL:
            help = "give a folder of its own, such as models/; `attar ship` makes it"
            what = f"is {kind}: a model repository in it would spoil it"
            raise InputError(Fault(what, file=str(folder), help=help))


def _allowed(folder: Path, verdict: Verdict, even_if: str) -> None:
    known = ("inconclusive", "missed")
    if even_if and even_if not in known:
        raise InputError(Fault(f"{even_if!r} must be {' or '.join(known)}", "--even-if"))
    bound: Verdict = even_if or "met"  # type: ignore[assignment]  # one of `known`
    if worst((verdict, bound)) != bound:
        what = f"its verdict is {verdict}, not {bound}"
        help = f"see why in manifest.json; --even-if {verdict} ships it nevertheless, and its manifest will say so"
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
        raise InputError(Fault(_CHANGED, file=str(ours.model.path)))
    notes = layout.notes
    if layout.added and evidence.SIGNATURE in held:
        left = f"the artifact's signature does not cover {', '.join(sorted(layout.added))}, which the server runs by"
        notes = (*notes, f"{left}: `attar verify --key` passes once you `attar sign` the version")
    return replace(layout, version=held, notes=notes)
