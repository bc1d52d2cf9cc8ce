"""Inputs for models that come without data: made up from shapes, or read from a file that a person names."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.artifact import Artifact, Value
from targets.errors import Fault, InputError, nearest

__all__ = ["Given", "Inputs", "given", "made", "names_known", "open_axes", "shown"]

Given = Mapping[str, "tuple[int, ...] | NDArray[Any]"]
"""What is known of inputs beforehand, by name: the whole shape, or the array itself."""

Inputs = dict[str, NDArray[Any]]

MOST_BYTES = 1_000_000_000  # of one array: what a shape that was mistyped would take

_FLOATS = ("float16", "float32", "float64")
_INTS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_OPTION = "--input {0}={1}, or --input {0}=FILE.npy"


def given(texts: Iterable[str]) -> dict[str, tuple[int, ...] | NDArray[Any]]:
    """Reads "name=1x3x224x224", "name=scalar" and "name=file.npy".

    Raises:
        InputError: all that is wrong: the form, a size, a file that is missing or holds no plain array.
    """
    found: dict[str, tuple[int, ...] | NDArray[Any]] = {}
    faults = []
    for text in texts:
        name, _, value = text.rpartition("=")
        told: tuple[int, ...] | NDArray[Any] | str
        help = "a shape is numbers with an x between them"
        if not name or not value:
            told = "must look like NAME=1x3x224x224 or NAME=FILE.npy"
        elif name in found:
            told, help = f"gives {name!r} a second time", "give each input once"
        elif value.endswith(".npy"):
            told, help = _array(Path(value)), "write the file with numpy.save(FILE, array)"
        else:
            told = _shape(value)
        if isinstance(told, str):
            faults.append(Fault(f"{text!r} {told}", "--input", help=help))
        else:
            found[name] = told
    if faults:
        raise InputError(faults)
    return found


def _shape(text: str) -> tuple[int, ...] | str:
    """The shape, or what is wrong with it."""
    if text == "scalar":
        return ()
    if not re.fullmatch(r"[0-9]{1,12}(x[0-9]{1,12})*", text):
        return "must give a shape such as 1x3x224x224, the word scalar, or a file that ends in .npy"
    sizes = tuple(int(size) for size in text.split("x"))
    return "has a size of 0: there would be nothing to compute" if 0 in sizes else sizes


def _array(path: Path) -> NDArray[Any] | str:
    """The array, or what is wrong with the file."""
    try:
        size = path.stat().st_size
        array: NDArray[Any] | None = np.load(path, allow_pickle=False) if size <= MOST_BYTES else None
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except (ValueError, EOFError) as error:
        return f"is no plain array in numpy's format: {str(error).splitlines()[0]}"
    if array is None:
        return f"names a file of {size / 1e6:,.0f} MB; at most {MOST_BYTES / 1e6:,.0f} MB are read"
    return array if array.size else f"holds an empty array of shape {array.shape}"


def made(model: Artifact, known: Given, batch: int | None = None) -> Inputs:
    """An array for each input of a model: what is known of it, and random numbers for the rest, the same each time.

    Floats are normal, integers 0 or 1 (they may be indices), 8-bit ones anything, booleans true.

    Args:
        known: names of other models' inputs may be among them.
        batch: size of a first axis that the model leaves open. None: 1, or what is known; else arrays that are known
            are repeated or cut to it.

    Raises:
        InputError: everything that does not fit, or is not known: each input with its shape, and the option to give.
    """
    sizes: dict[str, int] = {}
    faults, found = [], {}
    for value in model.inputs:  # a size that is given for one input is known for all that name it
        if value.name in known:
            shape = np.shape(told) if isinstance(told := known[value.name], np.ndarray) else tuple(told)
            if fault := _misfit(model, value, shape, batch):
                faults.append(fault)
            else:
                sizes |= {axis: n for axis, n in zip(value.shape, shape, strict=True) if isinstance(axis, str)}
    for value in model.inputs:
        if faults and value.name in known:
            continue
        try:
            found[value.name] = _filled(model, value, known.get(value.name), sizes, batch)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    return found


def shown(shape: Iterable[int | str]) -> str:
    """(1, "length") -> "1xlength"."""
    return "x".join(map(str, shape)) or "scalar"


def names_known(models: Iterable[Artifact], known: Given) -> None:
    """Checks that every known input is one of some model.

    Raises:
        InputError: the names that no model has.
    """
    have = {value.name for model in models for value in model.inputs}
    if unknown := [name for name in known if name not in have]:
        raise InputError(
            [Fault(f"no model has an input {name!r}", "--input", help=nearest(name, have)) for name in unknown]
        )


def open_axes(model: Artifact, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of all axes that a model's inputs leave open, by their names.

    Args:
        shapes: of what each input is fed with.

    Raises:
        InputError: an axis is open and has no name, or one name would stand for two sizes.
    """
    sizes: dict[str, int] = {}
    for value in model.inputs:
        for axis, size in zip(value.shape, shapes[value.name], strict=True):
            if isinstance(axis, str) and (axis == "?" or sizes.setdefault(axis, size) != size):
                what = (
                    f"input {value.name!r} of shape {shown(value.shape)} cannot be fixed at {shown(shapes[value.name])}"
                )
                raise InputError(Fault(what, file=str(model.path), help="export it with axes that are fixed, or named"))
    return sizes


def _misfit(model: Artifact, value: Value, shape: tuple[int, ...], batch: int | None) -> Fault | None:
    fits = len(shape) == len(value.shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(value.shape, shape, strict=True)
    )
    if fits:
        return None
    what = f"input {value.name!r} takes the shape {shown(value.shape)} ({value.dtype}), and {shown(shape)} was given"
    return Fault(what, file=str(model.path), help=_OPTION.format(value.name, _example(value, batch)))


def _example(value: Value, batch: int | None) -> str:
    sizes = [axis if isinstance(axis, int) else (batch or 1) if i == 0 else 128 for i, axis in enumerate(value.shape)]
    return shown(sizes)


def _filled(
    model: Artifact,
    value: Value,
    told: tuple[int, ...] | NDArray[Any] | None,
    sizes: Mapping[str, int],
    batch: int | None,
) -> NDArray[Any]:
    def fault(what: str, help: str) -> InputError:
        return InputError(Fault(f"input {value.name!r} {what}", file=str(model.path), help=help))

    if value.dtype not in (*_FLOATS, *_INTS, "bool"):
        raise fault(f"is of the type {value.dtype}", f"numbers can be fed: {', '.join((*_FLOATS, *_INTS, 'bool'))}")
    open_first = bool(value.shape) and isinstance(value.shape[0], str)
    if isinstance(told, np.ndarray):
        if told.dtype != value.dtype:
            if not np.can_cast(told.dtype, value.dtype, "same_kind"):
                raise fault(f"is {value.dtype}, and the file holds {told.dtype}", "save it with the model's own type")
            told = told.astype(value.dtype)
        rows = batch if batch is not None and open_first else len(told) if told.ndim else 0
        return told if not told.ndim or rows == len(told) else told[np.arange(rows) % len(told)]
    if told is not None:
        shape = list(told)
    else:
        if 0 in value.shape:
            what = f"has the shape {shown(value.shape)}: there would be nothing to compute"
            raise fault(what, "export it with an open size in place of the 0")
        first = 1 if batch is None else batch
        known = [
            axis if isinstance(axis, int) else first if i == 0 and axis not in sizes else sizes.get(axis)
            for i, axis in enumerate(value.shape)
        ]
        if any(size is None for size in known):
            what = f"has the shape {shown(value.shape)} ({value.dtype}), and not all of its sizes are known"
            raise fault(what, f"give it: {_OPTION.format(value.name, _example(value, batch))}")
        shape = [size for size in known if size is not None]
    if open_first and batch is not None:
        shape[0] = batch
    return _random(value, tuple(shape), fault)


def _random(value: Value, shape: tuple[int, ...], fault: Any) -> NDArray[Any]:
    dtype = np.dtype(value.dtype)
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize > MOST_BYTES:
        what = f"of shape {shown(shape)} would take {count * dtype.itemsize / 1e6:,.0f} MB"
        raise fault(what, f"inputs up to {MOST_BYTES / 1e6:,.0f} MB can be measured: give a smaller shape")
    random = np.random.default_rng([0, zlib.crc32(value.name.encode())])
    if value.dtype == "bool":
        return np.ones(shape, dtype)
    if value.dtype in _FLOATS:
        return np.asarray(random.standard_normal(shape, np.float32)).astype(dtype)
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max + 1) if dtype.itemsize == 1 else (0, 2)
    return np.asarray(random.integers(low, high, shape)).astype(dtype)
