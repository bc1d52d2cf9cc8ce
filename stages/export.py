"""Export: a torch network becomes one ONNX file, and is proven equal to it on real inputs.

Values keep the names that `torch.export` gives them ("conv2d_1", "batch_norm", "add"), and nodes are named after the
module whose weight they hold ("stem.0"): faults, exclusions and ranges can then be told in words of the torch network.
"""

from __future__ import annotations

import io
import re
import sys
import sysconfig
import traceback
from contextlib import redirect_stderr
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto
from onnx.numpy_helper import to_array

from stages import graph, parity
from stages.base import Candidate, Context, Signature, Step
from stages.network import build
from stages.quiet import quiet
from stages.settings import ExportConfig
from targets.errors import StageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from targets.target import Target

__all__ = ["export", "to_onnx", "trace"]

DEFAULT_OPSET = 20
HERE = Path(__file__).parent
BATCH = "batch"

# Told here in attar's own words, or without consequence: the exporter looks for torchvision's operators, and says at
# length that it could not go below opset 18.
CHATTER = (
    "torch.onnx._internal.exporter._registration",
    "torch.onnx._internal.exporter._compat",
    "onnxscript.version_converter",
)
TREESPEC = r"`isinstance\(treespec, LeafSpec\)` is deprecated"  # torch's own code, met while it copies a program

# Warns that it cannot tell which line asked for a value; attar can.
GUARDS = ("torch.fx.experimental.symbolic_shapes",)

# The same of recurrent layers, which keep their weights in a list too.
FLAT_WEIGHTS = r"The tensor attributes? (self[\w.]*\._flat_weights\[\d+\](, )?)+ (was|were) assigned during export"


def export(candidate: Candidate, config: ExportConfig, context: Context) -> Candidate:
    """Writes `model.onnx` (and the torch twin's weights) into `context.out`.

    Raises:
        StageError: the opset is above the target's, the network cannot be traced with a dynamic batch, or the file
            does not give what torch gives; the message then names the first node that differs.
    """
    opset = _opset(config, context.target)
    validation = context.data.validation
    if not len(validation):
        raise StageError("export compares with torch on validation examples, and there are none")
    module, first = build(candidate), validation.inputs(slice(0, 1))

    context.progress(0.1, "capturing the forward pass")
    program = trace(module, np.resize(first, (2, *first.shape[1:])))
    context.progress(0.4, "writing ONNX")
    model = to_onnx(program, candidate.signature, opset)
    if context.target is not None:
        model.ir_version = min(model.ir_version, context.target.ir_version)
    path = context.out / "model.onnx"
    graph.write(model, path)

    context.progress(0.7, "comparing with torch")
    several = (inputs for inputs, _ in validation.batches(32, config.samples))
    batches = chain([first, np.resize(first, (3, *first.shape[1:]))], several)
    difference = parity.prove(program, candidate.signature, path, batches, config.tolerance)
    weights = graph.bring_weights(candidate, context.out)
    metrics = {"opset": opset, "parity_max_difference": difference, "size_mb": path.stat().st_size / 1e6}
    return candidate.then(Step("export", metrics=metrics), weights=weights, onnx=path)


def _opset(config: ExportConfig, target: Target | None) -> int:
    if target is None:
        return config.opset or DEFAULT_OPSET
    if config.opset is not None and config.opset > target.opset:
        raise StageError(
            f"export was asked for opset {config.opset} and target {target.name} takes at most {target.opset}: "
            "leave export.opset out to get the highest that fits"
        )
    return config.opset or min(DEFAULT_OPSET, target.opset)


def trace(module: torch.nn.Module, example: graph.Floats) -> ExportedProgram:
    """Captures a network's forward pass with a dynamic batch.

    Args:
        example: two inputs (2, ...); their values do not matter.

    Raises:
        StageError: the pass depends on values, or on the length of the batch.
    """
    said = io.StringIO()  # on failure torch prints all that it captured so far
    try:
        with quiet(GUARDS, [TREESPEC, FLAT_WEIGHTS]), redirect_stderr(said):
            shapes = ({0: torch.export.Dim(BATCH, min=1)},)
            program = torch.export.export(module, (torch.from_numpy(example),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises many types, from deep inside
        raise StageError(
            f"{_line(error)}torch.export could not capture the network with a dynamic batch: {_gist(error)}. Its "
            "forward pass must not branch on values, nor fix the length of the batch (write x.flatten(1), not "
            "x.view(8, -1), and x.shape[0], not len(x))"
        ) from error
    sys.stderr.write(said.getvalue())
    return program


def to_onnx(program: ExportedProgram, signature: Signature, opset: int) -> ModelProto:
    """The ONNX graph of a captured network: batch norms folded, names as in the program, nothing of this machine in it.

    Raises:
        StageError: an operator has no ONNX form, or none at this opset.
    """
    try:
        with quiet(CHATTER, [TREESPEC]):
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[signature.input_name],
                output_names=[signature.output_name],
            )
    except Exception as error:
        raise StageError(f"torch.onnx could not write the network at opset {opset}: {_gist(error)}") from error
    model: ModelProto = made.model_proto
    if graph.opset_of(model) != opset:
        raise StageError(
            f"torch.onnx could not write the network at opset {opset}: some operator has no form below opset "
            f"{graph.opset_of(model)}. Choose a target that takes opset {graph.opset_of(model)}"
        )
    graph.strip(model)
    _drop_zero_sums(model, set(program.state_dict))
    graph.rename(model, _origins(made.exported_program))
    graph.name_nodes(model)
    _name_batch(model)
    return model


def _drop_zero_sums(model: ModelProto, weights: set[str]) -> None:
    """Removes, in place, sums with constant zeros: what is left of a residual branch that was cut and had a scale of
    its own. The exporter and onnxruntime drop only those with a single zero. Weights stay, zero as they may be before
    training: an untrained network must cost what a trained one does."""
    top = model.graph
    made = [t for t in top.initializer if t.name not in weights and t.data_type == TensorProto.FLOAT]
    zeros = {t.name for t in made if not to_array(t).any()}
    shapes = {v.name: v.type.tensor_type.shape for v in (*top.input, *top.value_info, *top.output)}
    kept = {value.name for value in top.output}
    for node in list(top.node):
        rest = [name for name in node.input if name not in zeros]
        if node.op_type != "Add" or len(rest) != 1 or node.output[0] in kept or rest[0] not in shapes:
            continue
        if shapes[rest[0]] == shapes.get(node.output[0]):
            top.node.remove(node)
            for reader in top.node:
                reader.input[:] = [rest[0] if name == node.output[0] else name for name in reader.input]
    read = {name for node in top.node for name in node.input} | kept
    for tensor in [t for t in top.initializer if t.name in zeros and t.name not in read]:
        top.initializer.remove(tensor)


def _origins(decomposed: ExportedProgram) -> dict[str, str]:
    """Name of each value after decomposition -> its name in the program before it ("getitem_3" -> "batch_norm_1").

    Where one operator became several, the last one makes its value.
    """
    last: dict[str, str] = {}
    for node in decomposed.graph.nodes:
        sources = node.meta.get("from_node")
        if node.op == "call_function" and sources:
            last[sources[-1].name] = node.name
    return {name: origin for origin, name in last.items()}


def _name_batch(model: ModelProto) -> None:
    """The exporter calls the batch axis after its symbol, s77 say."""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not symbol:
        raise StageError("torch.onnx fixed the batch axis: the network's forward pass must not depend on its length")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = BATCH


def _line(error: BaseException | None) -> str:
    """Where in the user's source it happened: the innermost line outside of Python, torch and attar's own."""
    ours = (str(HERE / "export.py"), str(HERE / "structure"), str(Path(torch.__file__).parent), "<")
    python = sysconfig.get_path("stdlib")
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            foreign = frame.filename.startswith(ours)
            foreign |= frame.filename.startswith(python) and "site-packages" not in frame.filename
            if not foreign and Path(frame.filename).is_file():
                return f"{Path(frame.filename).name}:{frame.lineno}: `{frame.line}`: "
        error = error.__cause__ or error.__context__
    return ""


def _gist(error: Exception) -> str:
    """The sentence of torch's long texts that says what is wrong."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    if any("specialized it to be a constant" in line for line in lines):  # torch then speaks of its own settings
        return "the code makes the length of the batch a constant"
    return re.split(r"\. | \(unhinted", lines[0])[0].rstrip(".") if lines else type(error).__name__
