"""A few examples that stay with an artifact, with the answers that it gave where it was made: so that another machine,
or a newer runtime, can be asked the same questions without the data set."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.lists import contents
from targets.errors import Fault, InputError

__all__ = ["NAME", "Reference", "load", "parse", "save"]

NAME = "reference.npz"
_MAX_BYTES = 4_000_000
_KINDS = {"inputs": np.float32, "labels": np.int64, "outputs": np.float32, "baseline_right": np.bool_}


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
        InputError: the file is missing, a link, or something else.
    """
    return parse(contents(path), path)


def parse(data: bytes, path: Path) -> Reference:
    """A reference's bytes, which came from `path`; see `load`."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            arrays = {name: found[name] for name in _KINDS}
    except Exception as error:  # of bytes that are none, numpy, zipfile and zlib raise a dozen kinds
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise InputError(Fault(f"is no reference of an artifact: {said}", file=str(path), help=_HELP)) from None
    for name, array in arrays.items():
        flat = name in ("labels", "baseline_right")
        if array.dtype != _KINDS[name] or not (array.ndim == 1 if flat else array.ndim > 1):
            wanted = f"{np.dtype(_KINDS[name])} in {'one dimension' if flat else 'two dimensions or more'}"
            what = f"holds {name} of {array.dtype} {array.shape}, and they are {wanted}"
            raise InputError(Fault(what, file=str(path), help=_HELP))
    reference = Reference(**arrays)
    k = len(reference.labels)
    if not len(reference.inputs) == len(reference.outputs) == k <= len(reference.baseline_right):
        raise InputError(Fault("holds arrays of different lengths", file=str(path), help=_HELP))
    return reference


_HELP = "take the folder again from the run, or run its recipe again: `attar run`"
