"""A structure as it would ship, before anything is trained: what it takes on a target does not depend on its weights.

The network is cut, exported, and made int8 where int8 will ship: by the parts of `stages.export` and `stages.quantize`,
so that the graph has the operators, shapes and fusions of the later artifact.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

from stages import graph
from stages.base import Signature, Surgery
from stages.export import to_onnx, trace
from stages.graph import Floats
from stages.int8.rules import after_folding, kept_float
from stages.structure.surgery import operate
from stages.vendors import ort_quantizer
from stages.vendors.ort_quantizer import Ranges
from targets.errors import StageError
from targets.target import Int8Rules

__all__ = ["Precision", "as_int8", "between", "folded", "mockup"]

SIZED = ("initializer", "value_info")
POSITIVE = {"Clip", "HardSigmoid", "Relu", "Sigmoid", "Softmax"}


@dataclass(frozen=True)
class Precision:
    """In what precision a network will ship.

    Attributes:
        int8: whether it will be quantized.
        exclude: ONNX node name patterns that stay float.
        pays: whether float ships where int8 turns out to be slower on the target.
    """

    int8: bool = False
    exclude: tuple[str, ...] = ()
    pays: bool = True


def mockup(
    module: nn.Module,
    signature: Signature,
    surgery: Sequence[Surgery],
    examples: Floats,
    opset: int,
    rules: Int8Rules | None = None,
    exclude: Sequence[str] = (),
) -> ModelProto:
    """The graph of a structure.

    Args:
        module: the uncut network, trained or not, in eval mode; stays as it is.
        examples: (k, *input shape), a few real inputs.
        rules: of the target for int8; None: float ships.
        exclude: ONNX node name patterns that stay float; one that matches nothing was cut away.

    Raises:
        StageError: the cut network cannot be traced, exported or quantized.
    """
    cut = _varied(operate(deepcopy(module), surgery).eval())
    program = trace(cut, np.resize(examples, (2, *examples.shape[1:])))
    model = to_onnx(program, signature, opset)
    return model if rules is None else as_int8(model, examples, rules, exclude)


def _varied(module: nn.Module) -> nn.Module:
    """The same, in place, with a little noise on tensors of one repeated number: the exporter drops biases that are
    zero, and writes equal tensors once, and after training they are neither."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(1e-3 * torch.rand(tensor.shape, generator=random))
    return module


def between(whole: ModelProto, narrow: ModelProto, way: Fraction, examples: Floats) -> ModelProto | None:
    """A graph with widths between those of two others, without the seconds that an export takes: where the three have
    the same nodes, every size in them that depends on a width does so in proportion.

    Args:
        whole, narrow: float graphs of one network, some channels of which `narrow` lacks.
        way: how far to go from `whole` (0) to `narrow` (1).

    Returns:
        None where they differ in more than sizes, a size would be no whole number, or the graph does not run.
    """
    ends = (whole.graph, narrow.graph)
    if any(list(getattr(ends[0], part)) != list(getattr(ends[1], part)) for part in ("node", "input", "output")):
        return None
    if any([v.name for v in getattr(ends[0], part)] != [v.name for v in getattr(ends[1], part)] for part in SIZED):
        return None
    made = ModelProto()
    made.CopyFrom(whole)
    try:
        for tensor, other in zip(made.graph.initializer, narrow.graph.initializer, strict=True):
            tensor.CopyFrom(numpy_helper.from_array(_cropped(tensor, other, way), tensor.name))
        for value, other in zip(made.graph.value_info, narrow.graph.value_info, strict=True):
            for axis, end in zip(value.type.tensor_type.shape.dim, other.type.tensor_type.shape.dim, strict=True):
                if axis.HasField("dim_value"):
                    axis.dim_value = _size(axis.dim_value, end.dim_value, way)
        graph.predict(graph.session(made), examples)
    except (ValueError, StageError):
        return None
    return made


def _cropped(tensor: Any, other: Any, way: Fraction) -> np.ndarray[Any, Any]:
    """A weight, or a shape that is a constant of the graph, on the way from one to the other."""
    values, end = numpy_helper.to_array(tensor), numpy_helper.to_array(other)
    if values.ndim != end.ndim:
        raise ValueError
    kept = values[tuple(slice(_size(a, b, way)) for a, b in zip(values.shape, end.shape, strict=True))]
    if values.dtype == np.int64 and values.shape == end.shape:
        sizes = [_size(a, b, way) for a, b in zip(values.ravel().tolist(), end.ravel().tolist(), strict=True)]
        return np.array(sizes, np.int64).reshape(values.shape)
    return np.ascontiguousarray(kept)


def _size(whole: int, narrow: int, way: Fraction) -> int:
    size = whole - (whole - narrow) * way
    if size.denominator != 1:
        raise ValueError
    return int(size)


def folded(model: ModelProto) -> ModelProto:
    """A float graph as int8 is placed on it."""
    return ort_quantizer.fold(model, Path(tempfile.gettempdir()))


def as_int8(
    model: ModelProto,
    examples: Floats,
    rules: Int8Rules,
    exclude: Sequence[str] = (),
    floats: Collection[str] = (),
) -> ModelProto:
    """The int8 graph of a float one, as `stages.quantize` places it.

    Its ranges are those of the examples: a ReLU fuses only where its range begins at zero. Where weights that were
    never trained make a value infinite, ranges follow from the operators alone.

    Args:
        examples, exclude: as for `mockup`.
        floats: names of more nodes, of the `folded` graph, that stay float.

    Raises:
        StageError: the quantizer failed.
    """
    op_types, base = ort_quantizer.operators(rules), folded(model)
    names = [node.name for node in model.graph.node if any(fnmatchcase(node.name, pattern) for pattern in exclude)]
    kept = {*after_folding(base, names), *kept_float(base, op_types), *floats}
    try:
        ranges = ort_quantizer.calibrate(base, lambda: (example[None] for example in examples))
    except StageError:
        ranges = _by_operator(base)
    return ort_quantizer.place(base, ranges, rules, op_types, kept)


def _by_operator(model: ModelProto) -> Ranges:
    _, values = graph.watched(model)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    ranges = {name: (0.0 if makers[name] in POSITIVE else -1.0, 1.0) for name in values}
    return {model.graph.input[0].name: (-1.0, 1.0), **ranges}
