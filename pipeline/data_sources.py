"""Data by name. Each source is read into labelled pools; `pipeline.splits` makes the three splits of them.

    digits               1797 handwritten digits of 8x8 pixels, 0..16, that come with scikit-learn (UCI, 1998)
    file.npz             arrays x_train, y_train, x_test, y_test (x_validation, y_validation), or x, y; maybe classes
    folder               <class>/<image>, or train/<class>/<image> beside test/ and maybe validation/; or IDX files as
                         MNIST and Fashion-MNIST have them (train-images-idx3-ubyte.gz, ...)
    module:function      called with `args`: gives (x, y), a torch Dataset, or a dict of these: train, validation, test

Arrays of images are (n, height, width) or (n, height, width, channels); torch tensors have their channels first, as is
the custom there. Image files are read as RGB, as they are stored (no rotation by EXIF), transparency dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import code, digests
from pipeline.data_files import SPLITS, Found, Pool, class_names, files_below, missing, read_files
from targets.errors import Fault, InputError, nearest

if TYPE_CHECKING:
    from pipeline.recipe import DataSpec

__all__ = ["check_data", "data_digest", "read"]

_KNOWN = "data is digits, a .npz file, a folder of images or IDX files, or module:function"


def check_data(spec: DataSpec, base: Path) -> list[Fault]:
    """What is wrong with a data source as far as its name tells; keys are relative to `data`. Reads no data."""
    if code.is_function(spec.source):
        return code.faults_of(spec.source, base)
    faults = []
    if spec.args:
        help = "remove args, or name a 'module:function'"
        faults.append(Fault(f"are for data that a function gives, and {spec.source!r} is none", "args", help=help))
    path = base / spec.source
    if spec.source != "digits" and not code.is_there(path):
        beside = [p.name for p in base.glob("*") if p.is_dir() or p.suffix == ".npz"]
        bare = not {"/", ".", ":"} & set(spec.source)
        what = f"unknown data source {spec.source!r}" if bare else f"{spec.source!r}: no such file or folder ({path})"
        faults.append(Fault(what, "source", help=f"{nearest(spec.source, ['digits', *beside])} ({_KNOWN})"))
    elif spec.source != "digits" and not path.is_dir() and path.suffix != ".npz":
        faults.append(Fault(f"{spec.source!r} is no data that attar reads", "source", help=_KNOWN))
    return faults


def data_digest(spec: DataSpec, base: Path) -> str:
    """Digest of all that the splits depend on, except the seed. Nothing is decoded or imported.

    Of files, their contents count, not their place. Of a function, its code counts, and the
    files that its arguments name; what else it reads is not seen.

    Raises:
        InputError: a file cannot be read, or a function's source not be found.
    """
    settings = spec.model_dump(mode="json", exclude={"reference"})
    content: Any
    if spec.source == "digits":
        content = {**digests.of_libraries(["scikit-learn"]), "file": _digits_file()}
    elif code.is_function(spec.source):
        named = digests.of_named_files(spec.args, base)
        content = {"code": digests.of_code(spec.source.partition(":")[0], base), "files": named}
    else:
        del settings["source"]
        path = base / spec.source
        try:
            files = files_below(path) if path.is_dir() else [path]
            content = {file.relative_to(path).as_posix(): digests.of_file(file) for file in files}
        except OSError as error:
            raise InputError(Fault(f"cannot be read: {error.strerror}", file=str(error.filename))) from None
    libraries = digests.of_libraries(["numpy", "pillow"])
    own = digests.of_code("pipeline.splits")
    return digests.of_json({"settings": settings, "content": content, "libraries": libraries, "code": own})


def _digits_file() -> str:
    """Digest of the file that scikit-learn reads; the library is found and not imported."""
    spec = find_spec("sklearn")
    roots = (spec.submodule_search_locations or ()) if spec else ()
    files = (Path(root, "datasets", "data", "digits.csv.gz") for root in roots)
    return next((digests.of_file(file) for file in files if file.is_file()), "absent")


def read(spec: DataSpec, base: Path) -> Found:
    """Reads a source.

    Raises:
        InputError: the source is missing, spoiled, or holds something else; or a library is not installed.
    """
    if spec.source == "digits":
        return _digits()
    if code.is_function(spec.source):
        return _function(spec.source, spec.args, base)
    return read_files(base / spec.source)


def _digits() -> Found:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing("scikit-learn", "data source digits") from None
    digits = load_digits()
    return Found({"train": Pool(digits.images, digits.target)}, divide_by=16.0)


def _function(source: str, args: Mapping[str, Any], base: Path) -> Found:
    """Calls a user's function. Whatever it raises is about the input, not about attar."""
    with code.importable(base):
        from stages.network import resolve  # wakes torch, which most of these functions use anyway

        function = resolve(source)
        try:
            return _found(function(**args), source)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            what = f"{source} called with {dict(args)} raised {type(error).__name__}: {error}"
            raise InputError(Fault(what, "data.source")) from error


def _found(value: Any, source: str) -> Found:
    """What a function returned: (x, y), a Dataset, or a dict of these by split."""
    if not isinstance(value, Mapping):
        return Found({"train": _pool(value, source)})
    pools = {SPLITS[name]: _pool(part, source) for name, part in value.items() if name in SPLITS}
    if "train" not in pools or not set(value) <= {*SPLITS, "classes"}:
        what = f"{source} returned a dict with the keys {', '.join(map(str, value)) or '(none)'}"
        raise InputError(Fault(what, "data.source", help="train is needed; validation, test and classes are known"))
    return Found(pools, class_names(value.get("classes"), source))


def _pool(value: Any, source: str) -> Pool:
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_array(part) for part in value):
        return Pool(_array(value[0], channels=1), _array(value[1]))
    if isinstance(value, (tuple, list)) or not (hasattr(value, "__getitem__") or hasattr(value, "__iter__")):
        what = f"{source} returned a {type(value).__name__} that is no pair of arrays"
        help = "return (x, y), a torch Dataset, or {'train': ..., 'test': ...} of these"
        raise InputError(Fault(what, "data.source", help=help))
    items: Iterable[Any] = (value[i] for i in range(len(value))) if hasattr(value, "__len__") else value
    examples = [(_array(x, channels=0), int(y)) for x, y in items]
    return Pool([x for x, _ in examples], np.asarray([y for _, y in examples], np.int64))


def _is_array(value: Any) -> bool:
    return isinstance(value, list) or hasattr(value, "shape")


def _array(value: Any, channels: int | None = None) -> NDArray[Any]:
    """An array of a user's: images of a torch tensor, whose axis of channels is given, get their channels last."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    array = np.asarray(value.detach().cpu())
    return np.moveaxis(array, channels, -1) if channels is not None and array.ndim == channels + 3 else array
