"""What a model is fed with: batches of examples, or whole arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from targets.probe.errors import ProbeError

__all__ = ["Feeds", "Wanted", "wanted"]

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
}
MOST_FEEDS, MOST_BYTES = 256, 64e6  # made beforehand, so that no copying is timed


class Wanted:
    """One input as the model declares it.

    Attributes:
        shape: sizes; None where any will do.
        dtype: numpy's name of its type.
    """

    def __init__(self, name: str, kind: str, shape: list[Any]) -> None:
        self.name, self.shown = name, list(shape)
        self.shape: list[int | None] = [d if isinstance(d, int) and d >= 0 else None for d in shape]
        self.dtype = DTYPES.get(kind, "")
        if not self.dtype:
            raise ProbeError(f"input {name!r} is {kind}; supported: {', '.join(DTYPES)}")

    def __str__(self) -> str:
        """As a person reads it: "ids (int64, shape (batch, 128))"."""
        return f"{self.name} ({self.dtype}, shape ({', '.join('?' if d is None else str(d) for d in self.shown)}))"

    def takes(self, shape: tuple[int, ...], axes_from: int = 0) -> bool:
        """Whether an array of this shape may be fed, as far as the axes from `axes_from` on tell. onnxruntime shows a
        scalar and an input of any shape alike, as ()."""
        return not self.shape or (
            len(shape) == len(self.shape)
            and all(self.shape[i] in (None, shape[i]) for i in range(axes_from, len(shape)))
        )


def wanted(session: Any) -> list[Wanted]:
    """The inputs of a session of onnxruntime, in its order."""
    return [Wanted(value.name, value.type, value.shape) for value in session.get_inputs()]


class Feeds:
    """The arrays for one model, and the feeds made from them.

    Attributes:
        whole: whether every feed is the arrays as they are, instead of a batch of examples.
        count: number of examples; 1 of whole arrays.
    """

    def __init__(self, inputs: list[Wanted], files: Mapping[str, Path], whole: bool) -> None:
        self.whole, self._inputs = whole, inputs
        for one in inputs:
            if one.name not in files:
                raise ProbeError(f"its input {one} was given nothing; given: {', '.join(files) or 'no input at all'}")
        if extra := sorted(set(files) - {one.name for one in inputs}):
            raise ProbeError(f"it has no input {', '.join(extra)}; it has {'; '.join(map(str, inputs))}")
        self._arrays = {one.name: _read(one, files[one.name]) for one in inputs}
        for one in inputs:
            _check(one, self._arrays[one.name], whole)
        if whole:
            import numpy as np

            self._arrays = {name: np.array(array, order="C") for name, array in self._arrays.items()}
        counts = {name: len(array) for name, array in self._arrays.items()} if not whole else {}
        if len(set(counts.values())) > 1:
            raise ProbeError(f"its inputs have different numbers of examples: {_listed(counts)}")
        self.count = min(counts.values(), default=1)
        if self.count == 0:
            raise ProbeError("there are no examples to feed")
        fixed = {one.name: one.shape[0] for one in inputs if not whole and one.shape[0] is not None}
        if len(set(fixed.values())) > 1:
            raise ProbeError(f"its inputs fix different batches, {_listed(fixed)}; feed it whole arrays")
        self._fixed = next(iter(fixed.values()), None)

    def size(self, batch: int) -> int:
        """Inferences in one run when `batch` are asked for: the model's own where it is fixed; 1 of whole arrays."""
        return 1 if self.whole else self._fixed or batch

    def feed(self, batch: int, start: int = 0) -> dict[str, Any]:
        """The `size(batch)` examples from `start` on, beginning anew after the last; or the whole arrays."""
        import numpy as np

        if self.whole:
            return dict(self._arrays)
        index = np.arange(start, start + self.size(batch)) % self.count
        return {one.name: np.ascontiguousarray(self._arrays[one.name][index], dtype=one.dtype) for one in self._inputs}

    def cycle(self, batch: int) -> Iterator[dict[str, Any]]:
        """Feeds without end, made beforehand."""
        return itertools.cycle(self.made(batch))

    def made(self, batch: int) -> list[dict[str, Any]]:
        """The feeds of one cycle: those that come before the first comes again."""
        one, size = self.feed(batch), self.size(batch)
        held = max(1, sum(array.nbytes for array in one.values()))
        many = 1 if self.whole else max(1, min(math.ceil(self.count / size), MOST_FEEDS, int(MOST_BYTES / held)))
        return [one, *(self.feed(batch, i * size) for i in range(1, many))]


def _read(one: Wanted, path: Path) -> Any:
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ProbeError(f"{path.name}, for its input {one}, cannot be read: {error}") from None
    return array


def _check(one: Wanted, array: Any, whole: bool) -> None:
    """Raises ProbeError unless feeds can be made from the array."""
    import numpy as np

    got = f"{array.dtype}, shape {array.shape}"
    if whole:
        if array.dtype != one.dtype or not one.takes(array.shape):
            raise ProbeError(f"its input {one} was given {got}")
    elif not one.shape:
        raise ProbeError(f"its input {one} has no batch axis; feed it whole arrays")
    elif not np.can_cast(array.dtype, one.dtype, "same_kind") or not one.takes(array.shape, axes_from=1):
        raise ProbeError(f"its input {one} was given examples of {got}")


def _listed(numbers: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in numbers.items())
