"""ONNX graphs as stages handle them: reading, writing, running, counting; and the way in for recipes that start from an
.onnx file. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from stages.base import Candidate, Origin, Signature
from stages.data import Splits
from targets.errors import Fault, InputError, StageError

__all__ = [
    "Tally",
    "from_onnx",
    "int8_form",
    "opset_of",
    "predict",
    "read",
    "rename",
    "session",
    "strip",
    "tally",
    "watched",
    "write",
]

Floats = NDArray[np.float32]

QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}


def read(path: Path) -> ModelProto:
    """The graph in a file that attar wrote itself. A user's file comes in through `from_onnx`."""
    return onnx.load_model_from_string(path.read_bytes())


def write(model: ModelProto, path: Path) -> None:
    """Checks a graph and writes it as one file; the same graph gives the same bytes.

    Raises:
        StageError: onnx's checker refuses it, or it is too large for one file (2 GB).
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"onnx's checker refuses the graph: {_first_line(error)}") from error
    except ValueError as error:  # protobuf's limit
        raise StageError(f"the graph does not fit in one file: {_first_line(error)}") from error


def strip(model: ModelProto) -> None:
    """Removes, in place, what exporters leave for people: it holds paths and stack traces of the machine it ran on, and
    makes two files of the same network differ."""
    del model.metadata_props[:]
    model.doc_string = ""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        del graph.metadata_props[:]
        graph.doc_string = ""
        constants = {tensor.name for tensor in graph.initializer}
        kept = [info for info in graph.value_info if info.name not in constants]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            del part.metadata_props[:]
            part.doc_string = ""
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            graphs += [graph for attribute in node.attribute for graph in attribute.graphs]
    used = {node.domain for node in model.graph.node} | {""} | {f.domain for f in model.functions}
    opsets = [opset for opset in model.opset_import if opset.domain in used or (model.functions and opset.version)]
    del model.opset_import[:]
    model.opset_import.extend(opsets)


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Renames values, in place. A name that another value already has is left alone."""
    graph = model.graph
    values = {name for node in graph.node for name in (*node.input, *node.output) if name}
    values |= {part.name for part in (*graph.input, *graph.initializer)}
    wanted = {old: new for old, new in names.items() if old in values and old != new}
    taken = values - wanted.keys()
    new_names: dict[str, str] = {}
    for old, new in wanted.items():
        if new not in taken:
            new_names[old] = new
            taken.add(new)
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        node.output[:] = [new_names.get(name, name) for name in node.output]
    for part in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.name = new_names.get(part.name, part.name)


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators that the graph uses."""
    return max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)


def int8_form(model: ModelProto) -> str | None:
    """The first operator that shows that a graph is quantized already, or None."""
    for node in model.graph.node:
        if node.op_type in QUANTIZED or node.op_type.startswith("QLinear"):
            return str(node.op_type)
    return None


@dataclass(frozen=True)
class Tally:
    """How many nodes compute on int8 and how many on floats; Q/DQ themselves and index arithmetic are not counted.

    Attributes:
        left: operator -> how many of its nodes stayed float.
    """

    int8: int
    float: int
    left: Mapping[str, int]


def tally(model: ModelProto) -> Tally:
    """Counts a graph in QDQ form: a node is int8 if all floats that it reads come out of DequantizeLinear."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    floats = _float_values(model)
    int8, left = 0, Counter[str]()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        read_floats = [name for name in node.input if name in floats]
        if not read_floats:
            continue
        if all(makers.get(name) == "DequantizeLinear" for name in read_floats):
            int8 += 1
        else:
            left[node.op_type] += 1
    return Tally(int8, sum(left.values()), dict(sorted(left.items())))


def _float_values(model: ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.output, *graph.value_info)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}


def watched(model: ModelProto, also: Sequence[str] | None = None) -> tuple[ModelProto, list[str]]:
    """A copy of the graph that gives out its float values, and their names in the order they are computed.

    Args:
        also: only these values; None: every float value that a node makes.
    """
    copy = ModelProto()
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    infos: dict[str, ValueInfoProto] = {info.name: info for info in (*copy.graph.value_info, *copy.graph.output)}
    names = []
    for node in copy.graph.node:
        for name in node.output:
            info = infos.get(name)
            if info is None or info.type.tensor_type.elem_type != TensorProto.FLOAT:
                continue
            if also is None or name in also:
                names.append(name)
    del copy.graph.output[:]
    copy.graph.output.extend(infos[name] for name in names)
    return copy, names


def session(model: ModelProto | Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU. One thread by default: the same file then gives the same numbers everywhere.

    Raises:
        StageError: onnxruntime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors are raised; warnings about unused initializers are not news
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common root
        raise StageError(f"onnxruntime {onnxruntime.__version__} refuses the model: {_first_line(error)}") from error


def predict(runner: Any, inputs: Floats) -> Floats:
    """First output (batch, classes) of a session for inputs (batch, ...).

    Raises:
        StageError: onnxruntime failed.
    """
    try:
        return np.asarray(runner.run(None, {runner.get_inputs()[0].name: inputs})[0], np.float32)
    except Exception as error:
        raise StageError(f"onnxruntime failed on inputs {tuple(inputs.shape)}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def from_onnx(path: Path, splits: Splits, out: Path) -> Candidate:
    """A candidate from a user's .onnx file, which is copied byte for byte to `out/model.onnx`.

    Raises:
        InputError: the file is missing, broken, not in one piece, or does not fit the data; all faults found.
    """
    model, data = _parse(path)
    faults = list(_misfits(model, splits, str(path)))
    if faults:
        raise InputError(faults)
    given, made = _inputs(model)[0], model.graph.output[0]
    signature = Signature(splits.input_shape, len(splits.classes), given.name, made.name)
    _try(model, signature, splits, str(path))
    copied = out / "model.onnx"
    copied.write_bytes(data)
    return Candidate(path.stem, Origin(str(path)), signature, onnx=copied)


def _parse(path: Path) -> tuple[ModelProto, bytes]:
    def fault(what: str, help: str) -> InputError:
        return InputError(Fault(what, file=str(path), help=help))

    again = "export the network again, or give another file"
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except FileNotFoundError:
        raise fault("no such file", "give the path of an .onnx file") from None
    except OSError as error:
        raise fault(f"cannot be read: {error}", again) from None
    except Exception:  # protobuf's DecodeError, or a ValueError, by implementation
        raise fault("is not an ONNX file", again) from None
    outside = sorted(t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    if outside:
        raise fault(
            f"keeps {len(outside)} tensors in other files ({outside[0]}, ...)",
            "one file holds all: onnx.save(onnx.load(OLD), NEW)",
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise fault(f"onnx's checker refuses it: {_first_line(error)}", again) from None
    return model, data


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Inputs that must be fed: old files list their weights among the inputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _axes(value: ValueInfoProto) -> list[int | str] | None:
    """Lengths of the axes; a name, or "?", where an axis is dynamic; None where even their number is unknown."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]


def _misfits(model: ModelProto, splits: Splits, file: str) -> Iterator[Fault]:
    inputs, outputs = _inputs(model), list(model.graph.output)
    for values, what in ((inputs, "input"), (outputs, "output")):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            yield Fault(f"must have one {what} and has {len(values)}: {names}", file=file, help=_CUT)
            return
        if values[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(values[0].type.tensor_type.elem_type)
            yield Fault(f"{what} {values[0].name} must be FLOAT and is {kind}", file=file, help=_CUT)
    shape, classes = splits.input_shape, len(splits.classes)
    axes = _axes(inputs[0])
    if axes is not None:
        if axes and isinstance(axes[0], int):
            yield Fault(
                f"the batch axis of {inputs[0].name} is fixed at {axes[0]} and must be dynamic",
                file=file,
                help='export with dynamic_shapes={0: "batch"} for the input, or run attar on the torch network',
            )
        if len(axes) != len(shape) + 1 or any(
            isinstance(n, int) and n != m for n, m in zip(axes[1:], shape, strict=False)
        ):
            yield Fault(
                f"input {inputs[0].name} takes {_shown(axes)} and the data has {_shown(['batch', *shape])}",
                file=file,
                help="set data.image_size and data.channels to what the network takes",
            )
    axes = _axes(outputs[0])
    if axes is not None and (len(axes) != 2 or (isinstance(axes[1], int) and axes[1] != classes)):
        yield Fault(
            f"output {outputs[0].name} gives {_shown(axes)} and the data has {classes} classes: (batch, {classes})",
            file=file,
            help="the network must give one logit for each class",
        )


_CUT = "cut the graph down to one float input and the logits: onnx.utils.extract_model"


def _shown(axes: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, axes)) + ")"


def _try(model: ModelProto, signature: Signature, splits: Splits, file: str) -> None:
    """Runs one example and then three: a graph may promise a dynamic batch and still hold a fixed one inside."""
    try:
        runner = session(model)
        for batch in (1, 3):
            inputs = np.resize(splits.validation.inputs(slice(0, 3)), (batch, *signature.input_shape))
            shape = predict(runner, inputs).shape
            if shape != (batch, signature.outputs):
                raise StageError(f"a batch of {batch} gives {shape}, not {(batch, signature.outputs)}")
    except StageError as error:
        help = 'does it run in onnxruntime with batches of any length? Export it with dynamic_shapes={0: "batch"}'
        raise InputError(Fault(str(error), file=file, help=help)) from None


def node_names(model: ModelProto) -> dict[str, NodeProto]:
    """Nodes by name."""
    return {node.name: node for node in model.graph.node}
