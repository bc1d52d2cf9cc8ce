"""The three splits: what a source holds is checked, divided by class, resized, and sealed with a digest.

Train is for learning and calibration, validation for choices, test for the one verdict at the end. A source's own test
and validation splits are kept; what it lacks is taken off train, class by class. Within every split the examples are
mixed so that each prefix is a fair sample of the classes: `limit`, calibration and quick looks may take the first n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data_files import Found, Pool, decode, missing
from pipeline.data_sources import read
from stages.data import Preprocessing, Split, Splits
from targets.errors import Fault, InputError

if TYPE_CHECKING:
    from pipeline.recipe import DataSpec

__all__ = ["load_data"]

_LEAST = 2  # examples of a class in a split: fewer can not show anything
_ORDER = ("train", "validation", "test")

Labels = NDArray[np.int64]
Index = NDArray[np.int64]


def load_data(spec: DataSpec, base: Path, seed: int) -> Splits:
    """Loads a source and makes its three splits; the same arguments give the same arrays.

    Args:
        base: the recipe's folder, which a relative path starts from.
        seed: decides which examples go where, and their order.

    Raises:
        InputError: the data cannot be read or cannot be learned from.
    """
    found = read(spec, base)
    labels = {name: _labels(pool, name) for name, pool in found.pools.items()}
    classes = _classes(found, labels)
    chosen = {
        name: _Chosen(found.pools[pool], labels[pool], index)
        for name, (pool, index) in _divide(spec, labels, np.random.default_rng(seed)).items()
    }
    for name in _ORDER:
        _enough(name, chosen[name].labels, classes, spec)
    raw = {name: _raw(chosen[name], spec, name) for name in _ORDER}
    preprocessing = _preprocessing(spec, found, raw)
    splits = {name: Split(raw[name], chosen[name].labels, preprocessing) for name in _ORDER}
    return Splits(**splits, classes=classes, digest=_digest(splits.values(), classes))


@dataclass(frozen=True)
class _Chosen:
    """Those examples of a pool that make a split."""

    pool: Pool
    pool_labels: Labels
    index: Index

    @property
    def labels(self) -> Labels:
        return self.pool_labels[self.index]


def _bad(what: str, help: str = "", key: str = "data") -> InputError:
    return InputError(Fault(what, key, help=help))


def _labels(pool: Pool, name: str) -> Labels:
    """Labels as (n,) int64."""
    y = np.asarray(pool.y)
    if not getattr(pool.x, "shape", (1,)):
        raise _bad(f"{name} is a single number, where examples are expected: (n, ...)")
    if len(pool.x) == 0:
        raise _bad(f"{name} has no examples")
    if y.ndim != 1:
        column = y.ndim == 2 and y.shape[1] == 1
        how = "y[:, 0] takes the column" if column else "y.argmax(1) turns one-hot labels into such"
        help = f"one class number per example is wanted: {how}"
        raise _bad(f"labels of {name} have shape {y.shape}", help)
    if len(y) != len(pool.x):
        raise _bad(f"{name} has {len(pool.x)} examples and {len(y)} labels")
    if y.dtype.kind not in "iu":
        help = "classes are numbered from 0: np.unique(y, return_inverse=True)[1] numbers them"
        raise _bad(f"labels of {name} are {y.dtype}, where integers are expected", help)
    if y.min() < 0:
        at = int(y.argmin())
        raise _bad(f"label {y[at]} of example {at} in {name} is out of range", "classes are numbered from 0")
    if y.max() >= len(y) and name == "train":  # not one example for each class: also keeps the count of them small
        at = int(y.argmax())
        help = "classes are numbered from 0, without gaps"
        raise _bad(f"label {y[at]} of example {at} in {name} is out of range: there are {len(y)} examples", help)
    return y.astype(np.int64)


def _classes(found: Found, labels: Mapping[str, Labels]) -> tuple[str, ...]:
    """Class names; without names of their own, the numbers up to the largest label in train."""
    classes = found.classes or tuple(map(str, range(int(labels["train"].max()) + 1)))
    for name, y in labels.items():
        if y.max() >= len(classes):
            at = int(y.argmax())
            why = f"there are {len(classes)} names of classes" if found.classes else "train has no such class"
            raise _bad(f"label {y[at]} of example {at} in {name} is out of range: {why}")
    if len(classes) < 2:
        raise _bad(f"there is one class only ({classes[0]}): nothing to tell apart")
    return classes


def _divide(spec: DataSpec, labels: Mapping[str, Labels], rng: np.random.Generator) -> dict[str, tuple[str, Index]]:
    """For each split, the pool that it comes from and the examples in it."""
    shares = {}
    for name in ("test", "validation"):
        if name not in labels:
            shares[name] = getattr(spec, name)
        elif name in spec.model_fields_set:
            raise _bad("would do nothing: this data has a split of its own", f"leave out `{name}`", f"data.{name}")
    groups = _by_class(labels["train"], rng)
    taken: dict[str, list[Index]] = {name: [] for name in (*shares, "train")}
    for group in groups:
        start = 0
        for name, share in shares.items():
            end = start + max(_LEAST, round(share * len(group)))
            taken[name].append(group[start:end])
            start = end
        taken["train"].append(group[start:])
    parts = {name: ("train", _mixed(parts, rng)) for name, parts in taken.items()}
    parts |= {name: (name, _mixed(_by_class(y, rng), rng)) for name, y in labels.items() if name != "train"}
    source, index = parts["train"]
    return {**parts, "train": (source, index[: spec.limit])}


def _by_class(labels: Labels, rng: np.random.Generator) -> list[Index]:
    """Indexes of the examples of each class, shuffled."""
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))[:-1]
    return [rng.permutation(group) for group in np.split(order, ends)]


def _mixed(groups: Sequence[Index], rng: np.random.Generator) -> Index:
    """All indexes, spread so that each prefix holds the classes in their proportions."""
    index = np.concatenate(groups)
    place = np.concatenate([(np.arange(len(group)) + 0.5) / max(1, len(group)) for group in groups])
    return index[np.lexsort((rng.random(len(index)), place))]


def _enough(name: str, labels: Labels, classes: Sequence[str], spec: DataSpec) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    few = np.flatnonzero(counts < _LEAST)
    if len(few):
        told = ", ".join(f"{classes[c]!r}: {counts[c]}" for c in few[:5]) + (", ..." if len(few) > 5 else "")
        what = f"{name} has fewer than {_LEAST} examples of {len(few)} of {len(classes)} classes ({told})"
        limited = name == "train" and spec.limit is not None
        help = "raise or remove `limit`" if limited else "add examples, or leave out these classes"
        raise _bad(what, help)


def _raw(chosen: _Chosen, spec: DataSpec, name: str) -> NDArray[np.generic]:
    """The chosen examples as one array: images (n, height, width, channels), resized; anything else as it is.

    Raises:
        InputError: examples cannot be read, differ in shape, or are no finite numbers.
    """
    x, index = chosen.pool.x, chosen.index
    items: Iterable[NDArray[Any]]
    if isinstance(x, np.ndarray):
        items = _numbers(x[index], spec, name)
    else:  # one by one: large photographs are not all held before they are resized
        items = (
            decode(item) if isinstance(item, Path) else _numbers(item, spec, name) for item in (x[i] for i in index)
        )
    examples = [_example(item, spec, name) for item in items]
    odd = next((i for i, example in enumerate(examples) if example.shape != examples[0].shape), None)
    if odd is not None:
        first, other = (
            f"{x[index[i]] if isinstance(x[index[i]], Path) else f'example {index[i]}'} has {examples[i].shape}"
            for i in (0, odd)
        )
        help = "give data.image_size, and all images are resized"
        raise _bad(f"examples of {name} differ in shape: {other}, and {first}", help)
    rows = np.stack(examples)
    if rows.dtype == np.uint8:
        return rows
    bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(1))
    if len(bad):
        what = f"example {index[bad].min()} of {name} holds NaN or infinite numbers"
        raise _bad(what + (f", and {len(bad) - 1} more do" if len(bad) > 1 else ""))
    return rows


def _numbers(x: NDArray[Any], spec: DataSpec, name: str) -> NDArray[Any]:
    """uint8 stays, everything else becomes float32."""
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "fiub":
        raise _bad(f"examples of {name} are {x.dtype}, where numbers are expected")
    if x.dtype.kind in "iu" and spec.divide_by is None:
        help = "say which value becomes 1.0, as data.divide_by; or give uint8 or floats"
        raise _bad(f"examples of {name} are {x.dtype}, of which the range is not known", help)
    with np.errstate(over="ignore"):  # becomes infinite, which is told later
        return x.astype(np.float32)


def _example(item: NDArray[Any], spec: DataSpec, name: str) -> NDArray[Any]:
    """One example: an image (height, width, channels), resized; anything else as it is."""
    image = item[..., None] if item.ndim == 2 else item
    if image.ndim != 3:
        if spec.image_size is not None or spec.channels is not None:
            raise _bad(f"image_size and channels are for images, and examples of {name} have the shape {item.shape}")
        return item
    if not 1 <= image.shape[-1] <= 4:
        help = "x.transpose(0, 2, 3, 1) puts channels last" if image.shape[0] <= 4 else ""
        what = f"examples of {name} have the shape {image.shape}, where (height, width, 1 to 4 channels) is expected"
        raise _bad(what, help)
    size = spec.image_size
    return image if size is None or image.shape[:2] == (size, size) else _resized(image, size)


def _resized(image: NDArray[Any], size: int) -> NDArray[Any]:
    """Bilinear, as Pillow does it: where it shrinks, all pixels count. (height, width, channels), uint8 or float32."""
    try:
        from PIL import Image
    except ImportError:
        raise missing("Pillow", "data.image_size") from None
    layers = (Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1]))
    return np.stack([np.asarray(layer.resize((size, size), Image.Resampling.BILINEAR)) for layer in layers], -1)


def _preprocessing(spec: DataSpec, found: Found, raw: Mapping[str, NDArray[np.generic]]) -> Preprocessing:
    """The recipe's, completed by what the source says.

    Raises:
        InputError: splits differ in shape or type, or there are more means than channels.
    """
    kinds = {(part.shape[1:], part.dtype.name) for part in raw.values()}
    if len(kinds) > 1:
        told = ", ".join(f"{name}: {part.shape[1:]} {part.dtype}" for name, part in raw.items())
        raise _bad(f"splits differ in shape or type ({told})", "data.image_size makes sizes equal")
    train = raw["train"]
    channels = (spec.channels or train.shape[-1]) if train.ndim == 4 else 1
    for key in ("mean", "std"):
        given = len(getattr(spec, key))
        if given not in (1, channels):
            raise _bad(f"has {given} values, and inputs have {channels} channels", key=f"data.{key}")
    said = found.divide_by or (255.0 if train.dtype == np.uint8 else 1.0)
    return Preprocessing(
        image_size=spec.image_size,
        channels=spec.channels,
        divide_by=spec.divide_by or said,
        mean=spec.mean,
        std=spec.std,
    )


def _digest(splits: Iterable[Split], classes: Sequence[str]) -> str:
    """Digest of all numbers and of how they are prepared."""
    sha = hashlib.sha256()
    for split in splits:
        for array in (split.raw, split.labels):
            sha.update(f"{array.dtype.str} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).data)
        sha.update(split.preprocessing.model_dump_json().encode())
    sha.update("\n".join(classes).encode())
    return sha.hexdigest()
