"""What goes to a server, and what a server wants of it on disk: the contract between artifacts and servers.

A server is one module with `layout(shipment, options) -> Layout`, and one row in `targets.servers.SERVERS`. A layout is
data: nothing is written here. `targets.servers.publish` writes it, whole or not at all.

    DEST/<root files>                     for all models of that server: OpenVINO's config.json, MLServer's settings
    DEST/<name>/<shared files>            for all versions of the model: Triton's config.pbtxt, labels.txt, client.py
    DEST/<name>/<version>/<files>         one version: model.onnx, and the papers that prove it; what the server adds

What a layout adds in the last two is listed where it lies, with digests: LAYOUT.SHA256SUMS, see `targets.sha256sums`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.artifact import Artifact
from targets.target import Target

__all__ = ["Layout", "Options", "Shipment"]


@dataclass(frozen=True)
class Shipment:
    """An artifact ready to leave.

    Attributes:
        name: of the model on the server; also a folder: letters, digits, - _ and .
        model: the ONNX file, loaded and checked.
        target: the profile that it was judged for.
        labels: of the classes, in the order of the outputs; empty where the artifact has none.
        preprocessing: what happens to a raw example before it is an input, as in the manifest's data.preprocessing.
        sample: (k, *input shape), the golden sample: real inputs.
        answers: (k, classes), what the artifact answered to them where it was made.
        papers: what travels along in the version's folder, by name: manifest.json, reference.npz, SHA256SUMS, ...
        source: of the data, as the recipe names it: "digits", "x.npz", a folder; empty where that is not known.
    """

    name: str
    model: Artifact
    target: Target
    labels: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    sample: NDArray[np.float32]
    answers: NDArray[np.float32]
    papers: Mapping[str, bytes] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Options:
    """What a user may say about serving.

    Attributes:
        server_version: of the server as its makers number it ("25.10" for Triton); empty: the newest that is known.
        max_batch: the largest batch that the server may build of single requests; 1: it builds none.
        delay_us: how long a request may wait for others to be batched with.
        instances: copies of the model that serve at once.
        keep_config: a config.pbtxt that is there stays as it is.
    """

    server_version: str = ""
    max_batch: int = 8
    delay_us: int = 0
    instances: int = 1
    keep_config: bool = False


@dataclass(frozen=True)
class Layout:
    """Files by name relative to their folder; see the top of this module.

    Attributes:
        version: of the artifact: contents, or a file to copy.
        added: what the server wants beside them: contents, or contents that name the version: a function of its number,
            which is known only when it is published.
        shared: replaced by each publication, where what is there is as attar wrote it.
        kept: names of shared files that stay as they are, where they are there.
        root: from what is there now (None: nothing) to what is to be there; so that several models share one file.
            Raises InputError where what is there cannot be kept.
        alone: why no other model may lie in DEST; empty: others may.
        batch: the largest batch that the server will accept; 0: no limit that is known.
        start: the command that starts the server, from DEST as a shell takes it.
        port: of HTTP, where that command has the server listen on this machine; 0: it does not.
        notes: sentences for a person: what was chosen and why, what to do next.
    """

    version: Mapping[str, bytes | Path]
    shared: Mapping[str, bytes] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    root: Mapping[str, Callable[[bytes | None], bytes]] = field(default_factory=dict)
    added: Mapping[str, bytes | Callable[[int], bytes]] = field(default_factory=dict)
    alone: str = ""
    batch: int = 0
    start: Callable[[str], str] = lambda dest: ""
    port: int = 0
    notes: tuple[str, ...] = ()
