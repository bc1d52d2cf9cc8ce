"""The file that is shipped: one self-contained ONNX model, opened with care.

An ONNX file may name other files as its weights, and a path may be a link to something else. `load` refuses both, so
that what was digested, measured and judged is what is shipped. The file is opened once; all that is said about it comes
from those bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.errors import Fault, InputError
from targets.files import NotPlainError, opened

if TYPE_CHECKING:
    from onnx import ValueInfoProto

__all__ = ["MAX_BYTES", "MODEL", "Artifact", "Value", "load"]

MODEL = "model.onnx"
"""What the file is called in an artifact's folder, and on every server."""

MAX_BYTES = 2**31 - 1
"""What one protobuf message can hold; https://protobuf.dev/programming-guides/encoding/#size-limit"""


_BRANCHING = {"If", "Loop", "Scan"}


@dataclass(frozen=True)
class Value:
    """One input or output.

    Attributes:
        shape: batch first; a number where it is fixed, a name where it is not, "?" where it has none.
        dtype: as numpy calls it: "float32"; "string"; of what is no tensor its kind: "sequence".
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape as servers write it: -1 where it is open."""
        return tuple(size if isinstance(size, int) else -1 for size in self.shape)


@dataclass(frozen=True)
class Artifact:
    """An ONNX file that was read, checked and digested.

    Attributes:
        sha256: of the file's bytes, hexadecimal.
        size_bytes: of the file.
        opset: version of the standard operator set that it uses.
        branches: it holds If, Loop or Scan: what it computes, and how long that takes, can depend on the input.
    """

    path: Path
    sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    branches: bool = False


def load(path: Path, *, batched: bool = True) -> Artifact:
    """Opens and checks an ONNX file.

    Args:
        batched: refuse a model with an input or output whose first axis is not the batch: it cannot be shipped, but it
            can be profiled.

    Raises:
        InputError: no regular file of its own (a link, a folder), empty or above 2 GB, no valid ONNX, weights outside
            the file, an input or output of a type that onnx does not know, or (if `batched`) without a batch axis.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    data = _bytes(path)
    try:
        model = onnx.load_model_from_string(data)
        outside = sorted(set(_outside(model)))
        if outside:
            raise _fault(
                path,
                f"keeps weights outside the file: {', '.join(outside[:3])}",
                "save it as one file: onnx.save(onnx.load(PATH), NEW, save_as_external_data=False)",
            )
        onnx.checker.check_model(data)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _fault(path, f"is no valid ONNX model: {first}", _advice(data, first)) from None
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_value(path, v) for v in model.graph.input if v.name not in constants)
    outputs = tuple(_value(path, v) for v in model.graph.output)
    if not inputs or not outputs:
        raise _fault(path, f"has {len(inputs)} inputs and {len(outputs)} outputs", "at least one of each is needed")
    for kind, values in (("input", inputs), ("output", outputs)) if batched else ():
        for value in values:
            if not value.shape or value.shape[0] == 0:
                shown = "(" + ", ".join(map(str, value.shape)) + ")"
                raise _fault(
                    path,
                    f"{kind} {value.name!r} of shape {shown} has no batch axis",
                    "the first axis of every input and output must be the batch: a fixed number, or a name",
                )
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    branches = any(node.op_type in _BRANCHING for part in (model.graph, *model.functions) for node in part.node)
    return Artifact(
        path, hashlib.sha256(data).hexdigest(), len(data), opset, model.ir_version, inputs, outputs, branches
    )


def _fault(path: Path, what: str, help: str) -> InputError:
    return InputError(Fault(what, file=str(path), help=help))


def _bytes(path: Path) -> bytes:
    """The file's content; see `targets.files.opened`."""
    help = "give the path of an .onnx file"
    try:
        file = opened(path)
    except FileNotFoundError:
        raise _fault(path, "no such file", help) from None
    except NotPlainError as error:
        raise _fault(path, str(error), "copy the file itself to that place") from None
    except (OSError, ValueError) as error:
        raise _fault(path, f"cannot be read: {getattr(error, 'strerror', None) or error}", help) from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAX_BYTES:
            what = "is empty" if size == 0 else f"has {size / 1e9:.1f} GB; an ONNX file holds 2.1 GB"
            raise _fault(path, what, "an artifact is one self-contained .onnx file")
        return file.read()


_ADVICE = (
    ("ir_version", "export it with an older IR version, or update the package onnx here"),
    ("No Op registered", "correct the name; a custom operator needs a domain of its own among the opset imports"),
    ("No opset import", "add the domain, with its version, to the model's opset imports"),
    ("Field 'shape'", "give every input and output a shape; a name may stand for a size that is open"),
)
"""What the checker's complaint calls for, by words in it."""


def _advice(data: bytes, complaint: str) -> str:
    if found := next((help for words, help in _ADVICE if words in complaint), ""):
        return found
    if data.startswith((b"PK\x03\x04", b"\x80")):
        return "this looks like a torch checkpoint or a pickle: export it to ONNX first"
    return "the file is damaged, or something else under this name: export it again"


def _outside(message: Any) -> Iterator[str]:
    """Places outside the file that any tensor in the model points to: weights, attributes, subgraphs, functions."""
    if message.DESCRIPTOR.full_name == "onnx.TensorProto":
        if message.data_location == message.EXTERNAL or message.external_data:
            places = [entry.value for entry in message.external_data if entry.key == "location"]
            yield places[0] if places else message.name
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _outside(inner)


def _value(path: Path, info: ValueInfoProto) -> Value:
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = info.type.tensor_type
    shape = tuple(
        # Some exporters write -1 for a size that is open; onnxruntime takes it for one, too.
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or "?"
        for d in tensor.shape.dim
    )
    kind = info.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type" or not tensor.elem_type:
        return Value(info.name, shape, "unknown" if kind == "tensor_type" else kind.removesuffix("_type"))
    string = tensor.elem_type == TensorProto.STRING  # numpy would say "object"
    try:
        return Value(info.name, shape, "string" if string else str(tensor_dtype_to_np_dtype(tensor.elem_type)))
    except KeyError:  # the checker lets it pass
        what = f"has {info.name!r} of the element type {tensor.elem_type}, which the package onnx does not know"
        raise _fault(path, what, "export it with a type of today's, or update the package onnx here") from None
