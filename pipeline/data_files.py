"""Data in files: .npz archives, IDX files, folders of images. Each is read into labelled pools, as it is.

Nothing that is read can run code (no pickles), and symbolic links inside a folder are refused, not followed.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.errors import Fault, InputError, nearest

__all__ = ["SPLITS", "Found", "Pool", "class_names", "decode", "files_below", "missing", "read_files"]


@dataclass(frozen=True)
class Pool:
    """Labelled examples before they are split, chosen and resized.

    Attributes:
        x: array (n, ...), or n images (height, width, channels) of maybe different sizes, or n image files.
        y: labels (n,), of whatever type they came in.
    """

    x: NDArray[Any] | Sequence[NDArray[Any]] | Sequence[Path]
    y: NDArray[Any]


@dataclass(frozen=True)
class Found:
    """What a source holds.

    Attributes:
        pools: "train" alone, or with "test" and "validation" where the source has splits of its own.
        divide_by: the value that becomes 1.0, where the source knows it.
    """

    pools: Mapping[str, Pool]
    classes: tuple[str, ...] | None = None
    divide_by: float | None = None


# how a source may call a split -> the split
SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}

_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read_files(path: Path) -> Found:
    """Reads a file or folder; images are listed, and decoded when they are chosen.

    Raises:
        InputError: it is missing or spoiled, or holds something else.
    """
    if path.suffix == ".npz":
        return _npz(path)
    if not path.is_dir():
        what = "is neither a folder nor a .npz file" if path.exists() else "no such file or folder"
        raise InputError(Fault(what, file=str(path)))
    return _idx(path) if any(path.glob("*-images[-.]idx3-ubyte*")) else _folder(path)


def missing(library: str, what: str) -> InputError:
    """The error for an optional library that is not there."""
    return InputError(f"{what} needs {library}, which is not installed", help="pip install 'attar[compress]'")


def _npz(path: Path) -> Found:
    file = str(path)
    try:
        with path.open("rb") as stream:  # np.load leaves a spoiled file open
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(Fault("holds a single array, where an archive of several is expected", file=file))
            names = archive.files
            arrays = {_npz_key(name): np.asarray(archive[name]) for name in names if _npz_key(name)}
    except FileNotFoundError:
        raise InputError(Fault("no such file", file=file)) from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            help = "save plain arrays of numbers: np.savez(path, x=..., y=...)"
            raise InputError(Fault("refused: it holds pickled objects", file=file, help=help)) from None
        raise InputError(Fault(f"is no readable .npz archive: {error}", file=file)) from None
    pools = {}
    for split in ("train", "test", "validation"):
        x, y = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if (x is None) != (y is None) or (split == "train" and x is None):
            what = f"lacks x_{split} or y_{split}; it holds {', '.join(names) or 'nothing'}"
            help = "name the arrays x_train, y_train, x_test, y_test, or x, y"
            raise InputError(Fault(what, file=file, help=help))
        if x is not None and y is not None:
            pools[split] = Pool(x, y)
    return Found(pools, class_names(arrays.get("classes"), file))


def _npz_key(name: str) -> str:
    """ "x" and "x_train" are x_train, "y_val" is y_validation; "" for what is none of the data."""
    axis, _, split = name.partition("_")
    if axis in ("x", "y") and (split or "train") in SPLITS:
        return f"{axis}_{SPLITS[split or 'train']}"
    return name if name == "classes" else ""


def class_names(names: Any, file: str) -> tuple[str, ...] | None:
    """Class names from an array or a list of text.

    Raises:
        InputError: it is something else.
    """
    if names is None:
        return None
    names = np.asarray(names)
    if names.ndim != 1 or names.dtype.kind not in "US":
        what = f"classes must be a list of names, got {names.dtype} of shape {names.shape}"
        raise InputError(Fault(what, file=file))
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist())


def _idx(path: Path) -> Found:
    return Found(
        {
            split: Pool(_idx_file(path, f"{prefix}-images", 3), _idx_file(path, f"{prefix}-labels", 1))
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }
    )


def _idx_file(folder: Path, name: str, rank: int) -> NDArray[np.uint8]:
    """Two zero bytes, type (8: uint8), rank, sizes (4 bytes each, big-endian), numbers; the format of MNIST's files."""
    tried = [folder / f"{name}{sep}idx{rank}-ubyte{ending}" for sep in "-." for ending in ("", ".gz")]
    file = next((path for path in tried if path.is_file()), None)
    if file is None:
        raise InputError(Fault(f"there is neither {tried[0].name} nor {tried[1].name}", file=str(folder)))
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(Fault(f"cannot be read: {error}", file=str(file))) from None
    start = 4 + 4 * rank
    if data[:4] != bytes([0, 0, 8, rank]) or len(data) < start:
        raise InputError(Fault(f"is no IDX file of uint8 numbers of rank {rank}", file=str(file)))
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    numbers = np.frombuffer(data, np.uint8, offset=start)
    if numbers.size != np.prod(shape, dtype=np.int64):
        what = f"is cut off or spoiled: it holds {numbers.size} numbers, and its header says {shape}"
        raise InputError(Fault(what, file=str(file)))
    return numbers.reshape(shape)


def _folder(path: Path) -> Found:
    top = {p.name: p for p in _visible(path)}
    folders = {"train": path}
    if "train" in top:
        strange = sorted(set(top) - set(SPLITS)) or sorted(set(top) & {"val", "validation"})[1:]
        if strange:
            what = f"has {strange[0]} beside train, where one test and one validation folder are expected"
            raise InputError(Fault(what, file=str(path)))
        folders = {SPLITS[name]: p for name, p in top.items()}
    classes = tuple(p.name for p in _visible(folders["train"]))
    pools = {}
    for split, folder in folders.items():
        images = {p.name: _image_files(p) for p in _visible(folder)}
        strange = sorted(set(images) - set(classes))
        if strange:
            what = f"has class {strange[0]!r}, which train lacks"
            raise InputError(Fault(what, file=str(folder), help=nearest(strange[0], classes)))
        labels = [classes.index(name) for name, files in images.items() for _ in files]
        pools[split] = Pool([file for files in images.values() for file in files], np.asarray(labels, np.int64))
    return Found(pools, classes)


def _image_files(folder: Path) -> list[Path]:
    files = _visible(folder)
    for path in files:
        if path.is_dir() or path.suffix.lower() not in _IMAGES:
            help = "a class folder holds images only; start a name with a dot to have it left out"
            raise InputError(Fault("is no image", file=str(path), help=help))
    return files


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name; hidden entries left out."""
    if not folder.is_dir():
        help = "images are sorted into one folder per class; start a name with a dot to have it left out"
        raise InputError(Fault("lies where a folder is expected", file=str(folder), help=help))
    found = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    for path in found:
        if path.is_symlink():
            raise InputError(Fault("is a symbolic link, which is not followed", file=str(path), help="copy the files"))
    return found


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; hidden ones left out.

    Raises:
        InputError: there is a symbolic link.
    """
    return [file for path in _visible(folder) for file in (files_below(path) if path.is_dir() else [path])]


def decode(path: Path) -> NDArray[np.uint8]:
    """Reads an image file as RGB, (height, width, 3).

    Raises:
        InputError: it cannot be read, or has more than 8 bits per channel.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing("Pillow", "reading images") from None
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                help = "convert it to 8 bits per channel"
                raise InputError(Fault(f"has pixels of mode {image.mode!r}", file=str(path), help=help))
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(Fault(f"cannot be read as an image: {error}", file=str(path))) from None
