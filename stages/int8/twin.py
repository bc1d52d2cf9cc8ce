"""The torch twin of an int8 graph: made from the graph, and made into a graph again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto
from torch import nn

from stages import graph
from stages.export import to_onnx, trace
from stages.graph import Floats
from stages.int8 import placement
from stages.int8.adopt import put_back, same_nodes
from stages.int8.bench import Attempt, Bench, Setup
from stages.int8.fake import FakeQuantized, Parts
from stages.int8.placement import Layer, Placement
from stages.network import build, save_weights
from stages.vendors import ort_quantizer
from targets.errors import StageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Twin", "begin", "off_by", "write_back"]

LARGEST, REDUCED = 127, 64  # int8 weights of onnxruntime's quantizer; the latter with reduce_range
PROOF = 64  # validation examples on which artifact and twin are compared


@dataclass(frozen=True)
class Twin:
    """A torch network, and the int8 graph that it imitates.

    Attributes:
        network: the plain float network.
        layers: of the graph; `rounding` trains their weights.
    """

    network: nn.Module
    parts: Parts
    layers: Sequence[Layer]
    rounding: FakeQuantized
    setup: Setup
    int8: ModelProto
    placed: Placement


def begin(bench: Bench, best: Attempt) -> Twin:
    """The twin of the best graph so far, with that graph's weights. Where that graph holds more than the network can (a
    bias that it lacks, say), it begins with the candidate's own weights and min-max ranges.

    Raises:
        StageError: torch cannot be made to round where the graph does; the message names the value or node.
    """
    network = build(bench.candidate)
    program = _trace(network, _examples(bench))
    setup, int8 = best.setup, best.int8
    layers, constants = placement.layers_of(bench.folded), placement.constants_of(setup.model)
    if not same_nodes(setup.model, bench.folded) or _others(constants, layers, placement.constants_of(bench.folded)):
        names = {node.name for node in bench.folded.graph.node}
        setup = Setup(bench.folded, bench.calibrated(bench.folded), setup.exclude & names)
        int8, constants = bench.place(setup), placement.constants_of(setup.model)
    placed = placement.read(int8)
    largest = REDUCED if bench.rules.reduce_range else LARGEST
    signature = bench.candidate.signature
    rounding = FakeQuantized(network, program, signature, layers, constants, placed, largest)
    return Twin(network, Parts(program, signature), layers, rounding, setup, int8, placed)


def _others(constants: Mapping[str, Floats], layers: Iterable[Layer], before: Mapping[str, Floats]) -> set[str]:
    """Constants that changed and are no weights or biases of layers."""
    changed = {name for name, value in constants.items() if not np.array_equal(value, before[name])}
    return changed - {name for layer in layers for name in (layer.weight, layer.bias)}


def write_back(bench: Bench, twin: Twin, weights: Path) -> Setup:
    """The trained network as a float graph with ranges; the torch network's weights go to the file `weights`.

    Raises:
        StageError: the artifact would not be what was trained.
    """
    for layer, weight, bias in zip(twin.layers, twin.rounding.weights, twin.rounding.biases, strict=True):
        put_back(twin.network, twin.parts, layer, weight, bias)
    save_weights(twin.network, weights)
    network, inputs = build(replace(bench.candidate, weights=weights)), _examples(bench)
    assert bench.candidate.onnx is not None
    before = graph.read(bench.candidate.onnx)
    model = to_onnx(_trace(network, inputs), bench.candidate.signature, graph.opset_of(before))
    model.ir_version = min(model.ir_version, before.ir_version)
    model = ort_quantizer.fold(model, weights.parent)
    if not same_nodes(model, bench.folded):
        raise StageError("after training, the network exports to another graph than before")
    _check_weights(twin, placement.constants_of(model))
    kept = {name: twin.setup.ranges[name] for name in (*twin.placed.values, *twin.placed.grids)}
    method = twin.setup.method
    setup = Setup(model, bench.calibrated(model, method) | kept, twin.setup.exclude, weights=weights, method=method)
    int8 = bench.place(setup)
    if placement.read(int8) != twin.placed:
        raise StageError("after training, the int8 graph rounds elsewhere than before")
    off = off_by(twin, int8, inputs)
    return replace(setup, notes=(f"the trained network and its int8 graph differ by at most {off:.2g} output steps",))


def _check_weights(twin: Twin, constants: Mapping[str, Floats]) -> None:
    for layer, weight, bias in zip(twin.layers, twin.rounding.weights, twin.rounding.biases, strict=True):
        for name, trained in ((layer.weight, weight.T if layer.transposed else weight), (layer.bias, bias)):
            if not name:
                continue
            trained = trained.detach().numpy()
            if not np.allclose(constants[name], trained, rtol=1e-4, atol=1e-4 * float(np.abs(trained).max())):
                raise StageError(f"the torch network has no place for the trained {name!r}")


def off_by(twin: Twin, int8: ModelProto, inputs: Floats, fused: bool = False) -> float:
    """Largest difference between the twin's logits and an int8 graph's, in steps of the output.

    Args:
        fused: with this machine's int8 kernels; else each node on its own, on rounded floats, which is what the graph
            means on any machine.
    """
    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    got = graph.predict(graph.session(int8, options), inputs)
    with torch.no_grad():
        expected = twin.rounding.eval()(torch.from_numpy(inputs)).numpy()
    name = twin.placed.values.get(int8.graph.output[0].name)
    step = twin.placed.grids[name].step if name else float(np.ptp(expected)) / 255
    return float(np.abs(got - expected).max() / step)


def _examples(bench: Bench) -> Floats:
    return next(bench.context.data.validation.batches(PROOF))[0]


def _trace(network: nn.Module, inputs: Floats) -> ExportedProgram:
    return trace(network, np.resize(inputs, (2, *inputs.shape[1:])))
