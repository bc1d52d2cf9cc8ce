"""Seams: values whose channels can be rescaled without changing what the network computes.

What makes the value is divided by a factor per channel, what reads it is multiplied by it. That holds where a linear
writer and linear readers stand at both ends, and between them only operators with f(sx) = s f(x) for s > 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from stages.graph import Floats
from stages.int8.constants import Constants, Slot, attribute

__all__ = ["Reader", "Seam", "Writer", "rescale", "seams"]

ELEMENTWISE = ("Identity", "LeakyRelu", "PRelu", "Relu")
POOLS = ("AveragePool", "GlobalAveragePool", "MaxPool")
RESHAPES = ("Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True)
class Writer:
    """A constant whose numbers the value is proportional to. `axis`: its channels. `weight`: a matrix or kernel."""

    slot: Slot
    axis: int
    weight: bool = False


@dataclass(frozen=True)
class Reader:
    """A weight that multiplies the value. `axis`: its input channels, of which a convolution has one set for each of
    its `groups`."""

    slot: Slot
    axis: int
    groups: int = 1

    def reach(self, weight: Floats, channels: int) -> Floats:
        """Largest magnitude that each channel of the value is multiplied by, (channels,)."""
        size = np.abs(np.moveaxis(weight, self.axis, -1))
        if self.groups > 1:  # (outputs, ..., inputs of a group) -> by group
            return size.reshape(self.groups, -1, size.shape[-1]).max(1).reshape(channels)  # type: ignore[no-any-return]
        largest: Floats = size.reshape(-1, size.shape[-1]).max(0)
        return largest.reshape(channels, -1).max(1)  # type: ignore[no-any-return]

    def scaled(self, weight: Floats, factor: Floats) -> Floats:
        """The weight that gives the same for a value that was divided by `factor`, (channels,)."""
        moved = np.moveaxis(weight, self.axis, -1)
        if self.groups > 1:
            by_group = factor.reshape(self.groups, *([1] * (weight.ndim - 1)), -1)
            moved = (moved.reshape(self.groups, -1, *moved.shape[1:]) * by_group).reshape(moved.shape)
        else:
            moved = moved * factor.repeat(moved.shape[-1] // len(factor))  # flattened: channels come first
        return np.moveaxis(moved, -1, self.axis)


@dataclass(frozen=True)
class Seam:
    """A value between writers and readers. `axis`: of the value's channels."""

    value: str
    axis: int
    channels: int
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]

    def written(self, constants: Constants) -> Floats | None:
        """Largest weight that makes each channel, (channels,); None where no matrix or kernel does."""
        for writer in self.writers:
            if writer.weight:
                moved = np.abs(np.moveaxis(constants.get(writer.slot), writer.axis, 0))
                return moved.reshape(self.channels, -1).max(1)  # type: ignore[no-any-return]
        return None

    def read(self, constants: Constants) -> Floats:
        """Largest weight that multiplies each channel, (channels,), over all readers."""
        reaches = [reader.reach(constants.get(reader.slot), self.channels) for reader in self.readers]
        return np.max(reaches, axis=0)  # type: ignore[no-any-return]


def rescale(constants: Constants, seam: Seam, factor: Floats) -> None:
    """Divides the seam's value by `factor`, (channels,), and makes its readers multiply by it."""
    for writer in seam.writers:
        old = constants.get(writer.slot)
        shape = [1] * old.ndim
        shape[writer.axis] = seam.channels
        constants.put(writer.slot, old / factor.reshape(shape))
    for reader in seam.readers:
        constants.put(reader.slot, reader.scaled(constants.get(reader.slot), factor))


def seams(constants: Constants) -> tuple[list[Seam], Counter[str]]:
    """All seams in the graph's order; and what stands in the way of others, by operator."""
    walk, found, blocked = _Walk(constants), [], Counter[str]()
    for value, numbers in walk.readers.items():
        readers = [reader for number in numbers for reader in walk.reading(number, value)]
        if not readers:
            continue
        if len(readers) < len(numbers) or value in walk.given:
            others = [constants.nodes[n].op_type for n in numbers if not list(walk.reading(n, value))]
            blocked[others[0] if others else "an output"] += 1
            continue
        axis = 1 if readers[0][1] else -1
        if any((1 if spatial else -1) != axis for _, spatial in readers):
            continue
        made, why = walk.seam(value, axis, [reader for reader, _ in readers])
        if made is not None:
            found.append(made)
        elif why:
            blocked[why] += 1
    return found, blocked


class _Walk:
    """Steps from value to value."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.makers = {name: n for n, node in enumerate(constants.nodes) for name in node.output}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for number, node in enumerate(constants.nodes):
            for name in dict.fromkeys(node.input):
                self.readers[name].append(number)
        graph = constants.model.graph
        self.given = {value.name for value in graph.output}
        self.shapes = _shapes(constants.model)
        self.integers = {
            t.name: [int(v) for v in numpy_helper.to_array(t).ravel()] for t in graph.initializer if t.data_type == 7
        }

    def reading(self, number: int, value: str) -> Iterator[tuple[Reader, bool]]:
        """The weight by which a node multiplies the value, if that is all it does; and whether channels are axis 1."""
        node, slot = self.constants.nodes[number], Slot(number, 1)
        if not self.constants.has(slot) or node.input[0] != value or list(node.input).count(value) != 1:
            return
        if node.op_type == "Conv":
            yield Reader(slot, 1, int(attribute(node, "group", 1))), True
        elif node.op_type == "Gemm" and not attribute(node, "transA", 0):
            yield Reader(slot, 1 if attribute(node, "transB", 0) else 0), False
        elif node.op_type == "MatMul" and self.constants.get(slot).ndim == 2:
            yield Reader(slot, 0), False

    def seam(self, value: str, axis: int, readers: list[Reader]) -> tuple[Seam | None, str]:
        """The seam at a value that only `readers` read; or what stands in the way."""
        name, outer = value, axis
        while name in self.makers:
            node = self.constants.nodes[self.makers[name]]
            if name != value and (len(self.readers[name]) > 1 or name in self.given):
                return None, "a branch"
            writers = tuple(self.writers(name, axis))
            if writers:
                size = self.constants.get(writers[0].slot).shape[writers[0].axis]
                return Seam(value, outer, size, writers, tuple(readers)), ""
            passed = self.through(node, axis)
            if passed is None:
                return None, str(node.op_type)
            name, axis = node.input[0], passed
        return None, "the input" if name in self.shapes else ""

    def through(self, node: NodeProto, axis: int) -> int | None:
        """Channel axis before an operator that lets factors pass; None where they cannot."""
        before, after = self.shapes.get(node.input[0], []), self.shapes.get(node.output[0], [])
        spatial = len(before) == 4
        if node.op_type in ELEMENTWISE or (node.op_type in POOLS and axis == 1):
            return axis
        if node.op_type == "ReduceMean" and spatial and (axis == 1 or len(after) == 2):
            axes = self.integers.get(node.input[1], []) if len(node.input) > 1 else _listed(node, "axes")
            return 1 if axes and all(a % 4 >= 2 for a in axes) else None
        if (
            node.op_type in RESHAPES
            and spatial
            and len(after) == 2
            and all(before[1:])
            and after[1] == prod(before[1:])
        ):
            return 1
        return None

    def writers(self, name: str, axis: int) -> Iterator[Writer]:
        """The constants that a value is proportional to; none where there is no telling."""
        number = self.makers[name]
        node, last = self.constants.nodes[number], axis == -1
        bias = Slot(number, 2)
        known = self.constants.has(Slot(number, 1))
        if node.op_type == "Conv" and not last and known and (self.constants.has(bias) or self.constants.absent(bias)):
            yield Writer(Slot(number, 1), 0, weight=True)
            yield from (Writer(bias, 0) for _ in range(self.constants.has(bias)))
        elif node.op_type == "Gemm" and last and known:
            channel = 0 if attribute(node, "transB", 0) else 1
            size = self.constants.get(Slot(number, 1)).shape[channel]
            if self.constants.absent(bias) or self.wide(bias, size):
                yield Writer(Slot(number, 1), channel, weight=True)
                yield from (Writer(bias, -1) for _ in range(self.constants.has(bias)))
        elif node.op_type == "MatMul" and last and known and self.constants.get(Slot(number, 1)).ndim == 2:
            yield Writer(Slot(number, 1), 1, weight=True)
        elif node.op_type == "LayerNormalization" and last and attribute(node, "axis", -1) == -1 and known:
            if self.constants.has(bias) or self.constants.absent(bias):
                yield Writer(Slot(number, 1), 0)
                yield from (Writer(bias, 0) for _ in range(self.constants.has(bias)))
        elif node.op_type == "Add" and last:
            yield from self.added(number)

    def added(self, number: int) -> Iterator[Writer]:
        """A bias that stands behind a matrix product, and what makes that."""
        node = self.constants.nodes[number]
        for side in (0, 1):
            behind, slot = node.input[1 - side], Slot(number, side)
            if self.constants.has(slot) and len(self.readers[behind]) == 1 and behind in self.makers:
                inner = list(self.writers(behind, -1)) if behind not in self.given else []
                if inner and self.wide(slot, self.constants.get(inner[0].slot).shape[inner[0].axis]):
                    yield from (*inner, Writer(slot, -1))

    def wide(self, slot: Slot, size: int) -> bool:
        """Whether a constant has a number of its own for each channel, on its last axis."""
        return self.constants.has(slot) and self.constants.get(slot).shape[-1:] == (size,)


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """Sizes of every axis; 0 for one that is not fixed."""
    infos = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    return {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos}


def _listed(node: NodeProto, name: str) -> list[int]:
    return [int(v) for found in node.attribute if found.name == name for v in found.ints]
