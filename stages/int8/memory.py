"""How large a batch calibration may take, from the sizes of a graph's values and a cap on memory. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from stages import graph
from stages.int8.shapes import Shape, element_types, shapes, weight_bytes
from targets.errors import StageError

__all__ = ["Footprint", "batch_size", "footprint"]

# What calibration takes, found by measuring the peak of processes that calibrated networks of many and of few values.
COPIES = 5  # of all values of a batch: in onnxruntime's arena, which grows by doubling; numpy's, and those of the batch
#             before; and some room: 3.1 to 4.3 were seen
WORK = 4  # times the largest value: the runtime's change of layout, and counting into histograms
GRAPHS = 5  # times the weights: the graph, its copy with more outputs, that as bytes, the session's, repacked
BASE = 20 << 20  # bytes: a session's threads and buffers, and what lies idle in between
HISTOGRAM = 24 << 10  # bytes per value


@dataclass(frozen=True)
class Footprint:
    """Bytes that calibration takes, beside the libraries' own code: `fixed + per_example * batch size`."""

    fixed: int
    per_example: int


def footprint(model: ModelProto, input_shape: Shape, samples: int = 0) -> Footprint:
    """What watching every float value of a graph takes.

    Args:
        model: as `ort_quantizer.fold` gives it.
        input_shape: of one input, without the batch axis.
        samples: examples that `examine` keeps two numbers per value of.

    Raises:
        InputError: the graph takes inputs of another shape.
    """
    known = shapes(model, input_shape)
    floats = [name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT]
    sizes = [4 * math.prod(known[name]) for name in floats if name in known]
    if unknown := [name for name in floats if name not in known]:
        sizes += _by_running(model, unknown, input_shape)
    fixed = BASE + GRAPHS * weight_bytes(model) + (HISTOGRAM + 16 * samples) * len(floats)
    return Footprint(fixed, COPIES * sum(sizes) + WORK * max(sizes, default=0))


def batch_size(model: ModelProto, input_shape: Shape, memory_mb: float, most: int, samples: int = 0) -> int:
    """The largest batch, up to `most`, with which calibration stays within `memory_mb` (MB of 10^6 bytes).

    Raises:
        InputError: the graph takes inputs of another shape.
        StageError: not even one example fits.
    """
    found = footprint(model, input_shape, samples)
    fits = int((memory_mb * 1e6 - found.fixed) // max(1, found.per_example))
    if fits >= 1:
        return min(most, fits)
    needed = math.ceil((found.fixed + found.per_example) / 1e6)
    raise StageError(
        f"calibration may take {memory_mb:g} MB and needs {needed} MB even for one example at a time "
        f"({found.fixed / 1e6:.0f} MB for the graph, {found.per_example / 1e6:.1f} MB for the values of an example): "
        f"set quantize.memory_mb to {needed} or more"
    )


def _by_running(model: ModelProto, names: Sequence[str], input_shape: Shape) -> list[int]:
    """Bytes of values for one example, where inference could not tell."""
    seen, order = graph.watched(model)
    wanted = [name for name in order if name in set(names)]
    if not wanted:
        return []
    zeros = np.zeros((1, *input_shape), np.float32)
    return [value.nbytes for value in graph.session(seen).run(wanted, {seen.graph.input[0].name: zeros})]
