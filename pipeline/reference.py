"""A few examples that stay with an artifact, with the answers that it gave where it was made: so that another machine,
or a newer runtime, can be asked the same questions without the data set."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from targets.artifact import Artifact
from targets.errors import Fault, InputError

__all__ = ["NAME", "Reference", "parse", "save"]

NAME = "reference.npz"
_MAX_BYTES = 4_000_000
_MAX_UNPACKED = 1_000_000_000
_KINDS = {
    "inputs": (np.float32, 2),
    "labels": (np.int64, 1),
    "outputs": (np.float32, 2),
    "baseline_right": (np.bool_, 1),
}
"""Types, and dimensions; inputs may have more."""


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

    def fits(self, model: Artifact, path: Path) -> None:
        """Whether the examples are inputs of this model, and the answers its outputs.

        Args:
            path: where the reference came from.

        Raises:
            InputError: they are not.
        """
        for kind, found, value in (("in", self.inputs, model.inputs[0]), ("out", self.outputs, model.outputs[0])):
            fits = len(found.shape) == len(value.shape) and all(
                a == b or not isinstance(b, int) for a, b in zip(found.shape[1:], value.shape[1:], strict=True)
            )
            if not fits:
                ours, its = (f"({', '.join(map(str, shape[1:]))})" for shape in (found.shape, value.shape))
                what = f"holds {kind}puts of shape {ours} for each example, and the model's are {its}"
                raise InputError(Fault(what, file=str(path), help=_HELP))


def save(reference: Reference, path: Path) -> None:
    """Writes a compressed .npz file of at most 4 MB, and 1 GB unpacked: with half as many examples as often as it
    takes, at least one."""
    count = len(reference.labels)
    while True:
        buffer = io.BytesIO()
        first = {name: getattr(reference, name)[:count] for name in ("inputs", "labels", "outputs")}
        np.savez_compressed(buffer, **first, baseline_right=reference.baseline_right)
        if (buffer.tell() <= _MAX_BYTES and _unpacked(buffer) <= _MAX_UNPACKED) or count <= 1:
            path.write_bytes(buffer.getvalue())
            return
        count //= 2


def parse(data: bytes, path: Path) -> Reference:
    """Reads what `save` wrote.

    Args:
        path: where the bytes came from.

    Raises:
        InputError: they are something else.
    """
    try:
        size = _unpacked(io.BytesIO(data))
        with np.load(io.BytesIO(data), allow_pickle=False) as found:  # unpacks what it is asked for, then
            arrays = {name: found[name] for name in _KINDS} if size <= _MAX_UNPACKED else {}
    except Exception as error:  # of bytes that are none, numpy, zipfile and zlib raise a dozen kinds
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise InputError(Fault(f"is no reference of an artifact: {said}", file=str(path), help=_HELP)) from None
    if size > _MAX_UNPACKED:
        what = f"unpacks to {size / 1e6:,.0f} MB, and {_MAX_UNPACKED / 1e6:,.0f} MB is the most"
        raise InputError(Fault(what, file=str(path), help=_HELP))
    for name, array in arrays.items():
        kind, dims = _KINDS[name]
        more = name == "inputs"
        if array.dtype != kind or not (array.ndim == dims or (more and array.ndim > dims)):
            wanted = f"{np.dtype(kind)} in {'one dimension' if dims == 1 else 'two dimensions'}{' or more' * more}"
            what = f"holds {name} of {array.dtype} {array.shape}, and they are {wanted}"
            raise InputError(Fault(what, file=str(path), help=_HELP))
    reference = Reference(**arrays)
    k = len(reference.labels)
    if not len(reference.inputs) == len(reference.outputs) == k <= len(reference.baseline_right):
        raise InputError(Fault("holds arrays of different lengths", file=str(path), help=_HELP))
    labels, classes = reference.labels, reference.outputs.shape[1]
    if k and not 0 <= labels.min() <= labels.max() < classes:
        what = f"holds labels from {labels.min()} to {labels.max()}, and answers of {classes} classes"
        raise InputError(Fault(what, file=str(path), help=_HELP))
    if not np.isfinite(reference.outputs).all():
        raise InputError(Fault("holds answers that are no finite numbers", file=str(path), help=_HELP))
    return reference


def _unpacked(data: io.BytesIO) -> int:
    """What the files in an archive say that they unpack to, bytes; none unpacks to more."""
    with zipfile.ZipFile(data) as archive:
        return sum(file.file_size for file in archive.infolist())


_HELP = "take the folder again from the run, or run its recipe again: `attar run`"
