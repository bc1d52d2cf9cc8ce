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
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from stages import graph
from stages.base import Signature, Surgery
from stages.export import to_onnx, trace
from stages.graph import Floats
from stages.int8.rules import after_folding, kept_float
from stages.structure.derived import Derived
from stages.structure.surgery import operate
from stages.vendors import ort_quantizer
from stages.vendors.ort_quantizer import Ranges
from targets.errors import StageError
from targets.target import Int8Rules

__all__ = ["Precision", "as_int8", "folded", "mockup", "whole"]

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
    model = whole(operate(deepcopy(module), surgery).eval(), signature, examples, opset).model
    return model if rules is None else as_int8(model, examples, rules, exclude)


def whole(module: nn.Module, signature: Signature, examples: Floats, opset: int) -> Derived:
    """The graph of an uncut network, from which those of its structures follow.

    Args:
        module, examples: as for `mockup`.

    Raises:
        StageError: the network cannot be traced or exported.
    """
    varied = _varied(deepcopy(module))
    program = trace(varied, np.resize(examples, (2, *examples.shape[1:])))
    return Derived.of(varied, program, to_onnx(program, signature, opset))


def _varied(module: nn.Module) -> nn.Module:
    """The same, in place, with a little noise on tensors of one repeated number: the exporter drops biases that are
    zero, and writes equal tensors once, and after training they are neither."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(1e-3 * torch.rand(tensor.shape, generator=random))
    return module


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
