"""Models by name, and the way to data: what a recipe's `model` and `data` stand for.

A model is "module:function", which builds a torch network, or a path to an .onnx file. User code is looked for beside
the recipe first. Data is in `pipeline.data_sources` (where it comes from) and `pipeline.splits` (what becomes of it).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import code, digests
from pipeline.data_sources import check_data, data_digest
from pipeline.splits import load_data
from targets.errors import Fault, InputError

if TYPE_CHECKING:
    from pipeline.recipe import ModelSpec

__all__ = ["check_data", "check_model", "code_digest", "data_digest", "load_data", "model_digest"]


def check_model(spec: ModelSpec, base: Path) -> list[Fault]:
    """What is wrong with a model as far as its text and names tell; keys are relative to `model`. Reads no weights."""
    if spec.form == "onnx":
        faults = _no_file("source", spec.source, base)
        for key in ("args", "weights", "train"):
            if getattr(spec, key):
                faults.append(Fault("is for torch networks; an .onnx file is complete", key, help=f"remove {key}"))
        return faults
    if not code.is_function(spec.source):
        help = "for example stages.zoo:resnet"
        return [Fault(f"{spec.source!r} is neither 'module:function' nor an .onnx file", "source", help=help)]
    faults = code.faults_of(spec.source, base)
    if spec.weights is None and spec.train is None:
        help = "add `train: {}` to have it trained, or `weights: file.safetensors`"
        faults.append(Fault("the teacher has neither weights nor train", help=help))
    if spec.weights is not None:
        faults += _no_file("weights", spec.weights, base)
    return faults


def _no_file(key: str, name: str, base: Path) -> list[Fault]:
    path = base / name
    if code.is_there(path) and path.is_file():
        return []
    return [Fault(f"{name!r}: no such file ({path})", key, help="paths start from the recipe's folder")]


def model_digest(spec: ModelSpec, base: Path) -> str:
    """Digest of what decides the network before any training: code and arguments, or the .onnx file; and the weights.

    Raises:
        InputError: a file or the source of the code is missing.
    """
    try:
        weights = digests.of_file(base / spec.weights) if spec.weights else None
        network = digests.of_file(base / spec.source) if spec.form == "onnx" else code_digest(spec.source, base)
    except OSError as error:
        raise InputError(Fault(f"cannot be read: {error.strerror}", "model", str(error.filename))) from None
    named = digests.of_named_files(spec.args, base)
    return digests.of_json({"network": network, "args": spec.args, "files": named, "weights": weights})


def code_digest(source: str, base: Path) -> str:
    """Digest of a "module:function" and of the code that it stands on."""
    return digests.of_json({"function": source, "code": digests.of_code(source.partition(":")[0], base)})
