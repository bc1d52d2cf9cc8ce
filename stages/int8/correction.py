"""Bias correction: the mean error that int8 makes at each layer's output is added back to the layer's bias.

Rounded weights and clipped activations move the mean of a layer's outputs, channel by channel, and layers that follow
add it up. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section
4.2, and Finkelstein et al., "Fighting Quantization Bias With Bias" (2019). The means are measured, layer by layer, each
with all layers before it corrected already (Nagel's appendix D): measured all at once, a layer would also make good
what the layers before it make good themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from stages import graph
from stages.int8.bench import Attempt, Bench, Setup, Try
from stages.int8.constants import Constants, Slot, attribute

__all__ = ["bias_correction", "corrected", "redone", "uncorrected"]

TITLE = "bias correction"
Means = NDArray[np.float64]


@dataclass(frozen=True)
class _Layer:
    """A convolution or matrix product with a bias, or room for one.

    Attributes:
        name: of the node whose output is compared.
        weighted: of the node that reads the weights.
        bias: where its bias is read.
        axis: of the output's channels.
        depth: how many such layers stand before it, on the longest way, itself included.
    """

    name: str
    weighted: str
    bias: Slot
    axis: int
    depth: int


def bias_correction(bench: Bench, best: Attempt) -> Iterator[Try]:
    """Ranges stay as they are: they describe the float values, which int8 comes closer to."""
    if best.setup.uncorrected is None:
        yield Try(TITLE, lambda: corrected(bench, best.setup))


def redone(bench: Bench, setup: Setup, change: Callable[[Setup], Setup]) -> Setup:
    """Changes a setup; where its biases were corrected, that is taken back before, and done again after."""
    if setup.uncorrected is None:
        return change(setup)
    return corrected(bench, change(uncorrected(setup)))


def uncorrected(setup: Setup) -> Setup:
    """The setup before its biases were corrected; the same one if they were not."""
    if setup.uncorrected is None:
        return setup
    notes = tuple(note for note in setup.notes if not note.startswith(TITLE))
    return replace(setup, model=setup.uncorrected, uncorrected=None, notes=notes)


def corrected(bench: Bench, setup: Setup) -> Setup:
    """The setup with other biases. Takes one float pass over the calibration set, and one int8 pass for all layers of
    the same depth; stops where `bench.seconds_left` ends, with what it has.

    Memory is bounded by one batch: the outputs of the layers compared.
    """
    constants, int8 = Constants(setup.model), bench.place(setup)
    quantized = _quantized(int8)
    layers = [layer for layer in _layers(constants) if layer.weighted in quantized]
    levels: dict[int, list[_Layer]] = defaultdict(list)
    for layer in layers:
        levels[layer.depth].append(layer)
    wanted = _means(bench, setup.model, layers) if layers else {}
    done, shifts = 0, [0.0]
    for depth in sorted(levels):
        if bench.seconds_left() <= 0:
            break
        found = _means(bench, int8, levels[depth])
        for layer in levels[depth]:
            shift = wanted[layer.name] - found[layer.name]
            bias = constants.get(layer.bias) if constants.has(layer.bias) else np.zeros(1)
            constants.put(layer.bias, _added(bias, shift))
            shifts.append(float(np.abs(shift).max()))
        done += len(levels[depth])
        int8 = bench.place(replace(setup, model=constants.model))
    note = f"{TITLE}: {done} of {len(quantized)} int8 layers with weights, by {max(shifts):.3g} at most"
    if done < len(layers):
        note += "; time ended it"
    return replace(setup, model=constants.model, notes=(*setup.notes, note), uncorrected=setup.model)


def _added(bias: NDArray[np.floating], shift: Means) -> NDArray[np.floating]:
    """Their sum, in the bias's own rank where it has one (a Gemm may read (1, n))."""
    if bias.size == 1:
        return bias.reshape(-1) + shift
    return bias + shift.reshape(bias.shape)


def _quantized(int8: ModelProto) -> set[str]:
    """Names of nodes that read int8 weights."""
    constants = {tensor.name for tensor in int8.graph.initializer}
    weights = {
        node.output[0] for node in int8.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    wanted = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return {n.name for n in int8.graph.node if n.op_type in wanted and n.name and n.input[1] in weights}


def _layers(constants: Constants) -> Iterator[_Layer]:
    """Layers in the graph's order that a bias can be added to."""
    makers = {name: node for node in constants.nodes for name in node.output}
    depths: dict[str, int] = defaultdict(int)
    for number, node in enumerate(constants.nodes):
        depth = max((depths[name] for name in node.input), default=0)
        layer = _layer(constants, makers, number, depth + 1)
        for name in node.output:
            depths[name] = depth + (layer is not None)
        if layer is not None:
            yield layer


def _layer(constants: Constants, makers: Mapping[str, NodeProto], number: int, depth: int) -> _Layer | None:
    node = constants.nodes[number]
    slot = Slot(number, 2)
    free = constants.has(slot) or constants.absent(slot)
    if node.op_type in ("Conv", "ConvTranspose") and free:
        return _Layer(node.name, node.name, slot, 1, depth)
    if node.op_type == "Gemm" and free:
        whole = attribute(node, "beta", 1.0) == 1 and (constants.absent(slot) or _is_vector(constants.get(slot)))
        return _Layer(node.name, node.name, slot, -1, depth) if whole else None
    if node.op_type == "Add":  # a matrix product has no bias of its own; one that is added is as good
        for side in (0, 1):
            maker = makers.get(node.input[1 - side])
            slot = Slot(number, side)
            if maker is None or maker.op_type != "MatMul" or not constants.has(slot):
                continue
            if constants.get(slot).ndim == 1:
                return _Layer(node.name, maker.name, slot, -1, depth)
    return None


def _is_vector(bias: NDArray[np.floating]) -> bool:
    return bias.size == max(bias.shape, default=1) and bias.shape[-1:] in ((bias.size,), ())


def _means(bench: Bench, model: ModelProto, layers: Sequence[_Layer]) -> dict[str, Means]:
    """Layer -> mean of its outputs in each channel, before they are rounded, over the calibration set."""
    outputs = {node.name: node.output[0] for node in model.graph.node}
    runner = graph.session(_giving(model, [outputs[layer.name] for layer in layers]))
    source = runner.get_inputs()[0].name
    sums: dict[str, Means] = {}
    counts: dict[str, int] = defaultdict(int)
    for inputs in bench.batches():
        for layer, value in zip(layers, runner.run(None, {source: inputs}), strict=True):
            flat = np.moveaxis(value, layer.axis, -1).reshape(-1, value.shape[layer.axis])
            sums[layer.name] = sums.get(layer.name, 0.0) + flat.sum(0, dtype=np.float64)
            counts[layer.name] += len(flat)
    return {name: total / counts[name] for name, total in sums.items()}


def _giving(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The part of a graph that makes these values, which it gives out in this order."""
    copy, _ = graph.watched(model)
    infos = {info.name: info for info in copy.graph.output}
    makers = {name: node for node in copy.graph.node for name in node.output}
    needed, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in makers and name not in needed:
            needed.update(makers[name].output)
            waiting.extend(makers[name].input)
    nodes = [node for node in copy.graph.node if needed.intersection(node.output)]
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in copy.graph.initializer if tensor.name in read]
    for field, kept in (("node", nodes), ("initializer", constants), ("output", [infos[name] for name in names])):
        copy.graph.ClearField(field)
        getattr(copy.graph, field).extend(kept)
    return copy
