"""ONNX graphs as stages handle them: reading, writing, running, counting; and the way in for recipes that start from an
.onnx file. No torch here."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto

from stages.base import Candidate, Origin, Signature, Step
from stages.data import Splits
from targets.artifact import Artifact, load
from targets.errors import Fault, InputError, StageError

__all__ = [
    "Tally",
    "bring_weights",
    "from_onnx",
    "graphs",
    "int8_form",
    "name_nodes",
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


def bring_weights(candidate: Candidate, out: Path) -> Path | None:
    """Copies the weights of the torch twin, if there is one, beside the ONNX file: a candidate's files lie together."""
    return Path(shutil.copyfile(candidate.weights, out / candidate.weights.name)) if candidate.weights else None


def strip(model: ModelProto) -> None:
    """Removes, in place, what exporters leave for people: it holds paths and stack traces of the machine it ran on, and
    makes two files of the same network differ. Also operator sets that no node uses."""
    model.ClearField("doc_string")
    del model.metadata_props[:]
    domains = {""}
    for inner in graphs(model.graph):
        constants = {tensor.name for tensor in inner.initializer}
        infos = [info for info in inner.value_info if info.name not in constants]
        del inner.value_info[:]
        inner.value_info.extend(infos)
        domains |= {node.domain for node in inner.node}
        for part in (inner, *inner.node, *inner.input, *inner.output, *inner.value_info, *inner.initializer):
            part.ClearField("doc_string")
            del part.metadata_props[:]
    if not model.functions:
        opsets = [opset for opset in model.opset_import if opset.domain in domains]
        del model.opset_import[:]
        model.opset_import.extend(opsets)


def graphs(top: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside its If and Loop nodes."""
    yield top
    for node in top.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner)


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Renames values, in place. A value keeps its name where another one has the new name already.

    Args:
        names: old -> new; new names differ from each other.
    """
    graph = model.graph
    values = {name for node in graph.node for name in (*node.input, *node.output) if name}
    values |= {part.name for part in (*graph.input, *graph.initializer)}
    new_names = {old: new for old, new in names.items() if old in values}
    while clashes := [old for old, new in new_names.items() if new in values - new_names.keys()]:
        del new_names[clashes[0]]  # it keeps its name, which may now stand in another's way
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        node.output[:] = [new_names.get(name, name) for name in node.output]
    for part in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.name = new_names.get(part.name, part.name)


def name_nodes(model: ModelProto) -> None:
    """Names each node, in place, after the module whose weight it holds ("stem.0" for "stem.0.weight"), else after the
    value that it makes."""
    taken: set[str] = set()
    for node in model.graph.node:
        owners = [name.removesuffix(".weight") for name in node.input if name.endswith(".weight")]
        candidates = [*owners, *filter(None, node.output)]
        node.name = next((name for name in candidates if name not in taken), node.name)
        taken.add(node.name)


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators that the graph uses."""
    return max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)


def int8_form(model: ModelProto) -> str | None:
    """The first operator that shows that a graph is quantized already, or None."""
    for node in (node for inner in graphs(model.graph) for node in inner.node):
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
    """Counts a graph in QDQ form: a node is int8 if all floats that it reads come out of DequantizeLinear and all that
    it makes go into QuantizeLinear. That is the unit that runtimes replace by an int8 kernel. What lies in branches
    counts too; If and Loop themselves do not."""
    parts = list(graphs(model.graph))
    nodes = [node for inner in parts for node in inner.node]
    makers = {name: node.op_type for node in nodes for name in node.output}
    readers: dict[str, set[str]] = {value.name: {"the caller"} for inner in parts for value in inner.output}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    floats = _float_values(model)
    int8, left = 0, Counter[str]()
    for node in nodes:
        reads, makes = floats.intersection(node.input), floats.intersection(node.output)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "If", "Loop") or not (reads or makes):
            continue
        if all(makers.get(name) == "DequantizeLinear" for name in reads) and all(
            readers.get(name) == {"QuantizeLinear"} for name in makes
        ):
            int8 += 1
        else:
            left[node.op_type] += 1
    return Tally(int8, sum(left.values()), dict(sorted(left.items())))


def _float_values(model: ModelProto) -> set[str]:
    kinds: dict[str, int] = {}
    for graph in graphs(onnx.shape_inference.infer_shapes(model).graph):
        infos = (*graph.input, *graph.output, *graph.value_info)
        kinds |= {info.name: info.type.tensor_type.elem_type for info in infos}
        kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}


def watched(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """A copy of the graph that gives out every float value that a node makes, and their names in that order."""
    copy = onnx.shape_inference.infer_shapes(model)
    infos = {info.name: info for info in (*copy.graph.value_info, *copy.graph.output)}
    made = [name for node in copy.graph.node for name in node.output if name in infos]
    names = [name for name in made if infos[name].type.tensor_type.elem_type == TensorProto.FLOAT]
    outputs = [infos[name] for name in names]
    del copy.graph.output[:]
    copy.graph.output.extend(outputs)
    return copy, names


def session(model: ModelProto | Path, options: Any = None) -> Any:
    """An onnxruntime session on one CPU thread: the same file gives the same numbers on every run.

    Args:
        options: `onnxruntime.SessionOptions` to start from.

    Raises:
        StageError: onnxruntime refuses the model.
    """
    import onnxruntime

    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised: no need to print them too
    try:
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
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
        InputError: the file is missing, unsafe or broken, or does not fit the data.
    """
    faults = list(_misfits(load(path), splits))
    if faults:
        raise InputError(faults)
    copied = Path(shutil.copyfile(path, out / "model.onnx"))
    artifact = load(copied)  # what was copied is what is used, even if the file has changed since
    shape, classes = splits.input_shape, len(splits.classes)
    signature = Signature(shape, classes, artifact.inputs[0].name, artifact.outputs[0].name)
    runner = session(copied)
    for batch in (1, 3):  # a graph may promise a dynamic batch and still hold a fixed one inside
        try:
            given = np.resize(splits.train.inputs(slice(0, batch)), (batch, *shape))
            got = predict(runner, given).shape
            wrong = "" if got == (batch, classes) else f"gives {got} and should give {(batch, classes)}"
        except StageError as error:
            wrong = f"fails: {error}"
        if wrong:
            raise InputError(Fault(f"a batch of {batch} {wrong}", file=str(path), help=_DYNAMIC))
    step = Step("teacher", metrics={"opset": artifact.opset, "size_mb": artifact.size_bytes / 1e6})
    made = Candidate("teacher", Origin(path.name), signature, steps=(step,), onnx=copied)
    made.save(out)
    return made


_DYNAMIC = 'export it with a dynamic batch: torch.onnx.export(..., dynamic_shapes=({0: "batch"},), dynamo=True)'
_CUT = "cut the graph down to one float input and the logits: onnx.utils.extract_model(OLD, NEW, [INPUT], [LOGITS])"


def _misfits(artifact: Artifact, splits: Splits) -> Iterator[Fault]:
    file = str(artifact.path)
    for values, kind in ((artifact.inputs, "input"), (artifact.outputs, "output")):
        if len(values) != 1:
            names = ", ".join(value.name for value in values)
            yield Fault(f"has {len(values)} {kind}s and must have one: {names}", file=file, help=_CUT)
        elif values[0].dtype != "float32":
            yield Fault(f"{kind} {values[0].name!r} must be float32 and is {values[0].dtype}", file=file, help=_CUT)
        elif isinstance(values[0].shape[0], int):
            what = f"{kind} {values[0].name!r} fixes the batch at {values[0].shape[0]}"
            yield Fault(what, file=file, help=_DYNAMIC)
    given, made = artifact.inputs[0], artifact.outputs[0]
    wanted: tuple[int | str, ...] = ("batch", *splits.input_shape)
    if not _fits(given.shape, wanted):
        yield Fault(
            f"input {given.name!r} takes {_shown(given.shape)} and the data has {_shown(wanted)}",
            file=file,
            help="set data.image_size and data.channels to what the network takes",
        )
    wanted = ("batch", len(splits.classes))
    if not _fits(made.shape, wanted):
        yield Fault(
            f"output {made.name!r} gives {_shown(made.shape)} and the data has {len(splits.classes)} classes",
            file=file,
            help=f"the network must give one logit for each class: {_shown(wanted)}",
        )


def _fits(shape: Sequence[int | str], wanted: Sequence[int | str]) -> bool:
    """Whether axes after the batch agree; a dynamic one agrees with anything."""
    return len(shape) == len(wanted) and all(
        isinstance(axis, str) or axis == want for axis, want in zip(shape[1:], wanted[1:], strict=True)
    )


def _shown(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
