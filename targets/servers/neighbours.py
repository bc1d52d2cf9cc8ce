"""Whether a new version fits what lies in a model repository already: its model's other versions, and other models."""

from __future__ import annotations

import os
from pathlib import Path

from targets import artifact
from targets.artifact import MODEL
from targets.errors import Fault, InputError
from targets.servers.disk import CANDIDATE, HIDDEN, newest, versions
from targets.servers.shipment import Layout

__all__ = ["CONFIG", "SERVICE", "SETTINGS", "same_face", "suits"]

SETTINGS = "model-settings.json"
"""In each version for MLServer, and in none for another server: Triton, KServe and OpenVINO share one shape."""

SERVICE = ".inferenceservice.yaml"
"""How the file ends that says in DEST that KServe hands all of it to one server; it begins with the model's name."""

CONFIG = "config.pbtxt"
"""Beside the versions of a model that Triton was given."""

_OWN = "give a DEST of its own"


def suits(layout: Layout, dest: Path, name: str) -> None:
    """Refuses a layout that would mix two kinds of server in one model, or two models where there may be one.

    Raises:
        InputError: another kind of server was given this model; or the server takes a single model, and there is one;
            or DEST is KServe's, and this is for another server.
    """
    home, ours = dest / name, SETTINGS in layout.added
    others = [str(number) for number in versions(home) if os.path.lexists(home / str(number) / SETTINGS) != ours]
    if ours and os.path.lexists(home / CONFIG):
        others.insert(0, CONFIG)
    if others:
        theirs = "another server than MLServer" if ours else "MLServer"
        what = f"was shipped for {theirs} before: {', '.join(others)} there; one folder cannot serve both"
        raise InputError(Fault(what, file=str(home), help="ship it under another --name, or give another DEST"))
    name = name.removeprefix(CANDIDATE)
    for entry in sorted(dest.iterdir()) if dest.is_dir() else ():
        what, help = "", _OWN
        if entry.name.endswith(SERVICE) and not layout.alone:  # it may run an older Triton, and names one digest
            what = "is there: KServe serves what lies in its folder, which takes nothing that another server is given"
            help = "ship with --to kserve, or give another DEST"
        elif entry.name.endswith(SERVICE) and entry.name != name + SERVICE:
            what = f"hands all that lies in its folder to one server of KServe's: {name!r} cannot be there, too"
        elif layout.alone and entry.name != name and not entry.name.startswith(HIDDEN) and versions(entry):
            what = f"is another model, and {name!r} must lie in its DEST alone: {layout.alone}"
        if what:
            raise InputError(Fault(what, file=str(entry), help=help))


def same_face(home: Path, fresh: Path) -> None:
    """Refuses a version that its model's clients, or the shared files, would not fit."""
    number = newest(home)
    if number is None:
        return
    help = "ship it under another --name"
    new, old = fresh / MODEL, home / str(number) / MODEL
    try:
        then, now = (artifact.load(path, batched=False) for path in (old, new))
    except InputError as error:
        what = f"version {number} there is no model that attar shipped: {error.faults[0].what}"
        raise InputError(Fault(what, file=str(old), help=help)) from None
    if (was := _face(then)) != (will := _face(now)):
        what = f"version {number} there is {was}, and this one {will}: its clients would break"
        raise InputError(Fault(what, file=str(home), help=help))


def _face(model: artifact.Artifact) -> str:
    def told(values: tuple[artifact.Value, ...]) -> str:
        return ", ".join(
            f"{v.name} {v.dtype} ({', '.join(str(size) if isinstance(size, int) else '?' for size in v.shape)})"
            for v in values
        )

    return f"{told(model.inputs)} -> {told(model.outputs)}"
