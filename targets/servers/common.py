"""What several servers' layouts share: the files of a version, labels, how a batch may grow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from targets.artifact import MODEL, Artifact, Value
from targets.errors import Fault, InputError
from targets.servers.shipment import Options, Shipment

__all__ = ["datatype", "described", "fixed_batch", "labels", "pretty", "refuse", "version_files"]


def version_files(shipment: Shipment) -> dict[str, bytes | Path]:
    """The model, and the papers that prove it."""
    return {**shipment.papers, MODEL: shipment.model.path}


def described(shipment: Shipment) -> dict[str, bytes]:
    """labels.txt and preprocessing.json, where the artifact has them: what a client must know beside the model."""
    files = {}
    if shipment.labels:
        files["labels.txt"] = "".join(f"{name}\n" for name in labels(shipment)).encode()
    if shipment.preprocessing:
        files["preprocessing.json"] = pretty(dict(shipment.preprocessing))
    return files


def labels(shipment: Shipment) -> tuple[str, ...]:
    """The classes' names, each on one line."""
    return tuple(" ".join(name.split()) for name in shipment.labels)


def fixed_batch(model: Artifact, options: Options, server: str) -> int:
    """The batch that a graph is fixed at; 0 where every input and output leaves it open.

    Raises:
        InputError: it is fixed, and batching was asked for: another batch than what is taken when nothing is said.
    """
    firsts = [value.shape[0] for value in (*model.inputs, *model.outputs)]
    fixed = next((size for size in firsts if isinstance(size, int)), 0)
    asked = options.delay_us > 0 or options.max_batch not in (1, Options().max_batch)
    if fixed and asked:
        said = f"a delay of {options.delay_us} µs" if options.delay_us else f"batches of up to {options.max_batch}"
        raise refuse(
            model,
            f"has a fixed batch of {fixed}, so that {server} cannot join requests; {said} was asked for",
            "leave batching out, or export it again with an open batch: `export: {}` in the recipe, then `attar run`",
        )
    return fixed


def datatype(model: Artifact, value: Value, known: Mapping[str, str], server: str) -> str:
    """A value's type as a server calls it.

    Args:
        known: the server's names by numpy's.

    Raises:
        InputError: it has none.
    """
    if value.dtype not in known:
        raise refuse(
            model,
            f"has {value.name!r} of type {value.dtype}, which {server} does not know",
            f"it knows {', '.join(sorted(known))}: cast it in the graph and export again",
        )
    return known[value.dtype]


def refuse(model: Artifact, what: str, help: str) -> InputError:
    """A fault of the model's file."""
    return InputError(Fault(what, file=str(model.path), help=help))


def pretty(value: Any) -> bytes:
    """JSON that a person can read."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
