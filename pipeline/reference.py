"""A few examples that stay with an artifact, with the answers that it gave where it was made: so that another machine,
or a newer runtime, can be asked the same questions without the data set."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from targets.errors import Fault, InputError

__all__ = ["NAME", "Reference", "load", "save"]

NAME = "reference.npz"
_MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class Reference:
    """The first k of n examples of a test split.

    Attributes:
        inputs: (k, *input shape). labels: (k,). outputs: (k, classes), the artifact's on the machine that made it.
        baseline_right: (n,), whether the float teacher was right.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    outputs: NDArray[np.float32]
    baseline_right: NDArray[np.bool_]


def save(reference: Reference, path: Path) -> None:
    """Writes a compressed .npz file of at most 4 MB: with half as many examples as often as it takes, at least one."""
    count = len(reference.labels)
    while True:
        buffer = io.BytesIO()
        first = {name: getattr(reference, name)[:count] for name in ("inputs", "labels", "outputs")}
        np.savez_compressed(buffer, **first, baseline_right=reference.baseline_right)
        if buffer.tell() <= _MAX_BYTES or count <= 1:
            path.write_bytes(buffer.getvalue())
            return
        count //= 2


def load(path: Path) -> Reference:
    """Reads what `save` wrote.

    Raises:
        InputError: the file is something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            reference = Reference(*(found[name] for name in ("inputs", "labels", "outputs", "baseline_right")))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(Fault(f"is no reference of an artifact: {error}", file=str(path))) from None
    k = len(reference.labels)
    if not len(reference.inputs) == len(reference.outputs) == k <= len(reference.baseline_right):
        raise InputError(Fault("holds arrays of different lengths", file=str(path)))
    return reference
