"""Which operators do not pay in int8 on a target, by the times of single operators: what is worth a trial. The whole
graph, measured, decides (`stages.int8.pays`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from stages.int8.costs import Costs, Ran, dearest
from targets.devices import Device
from targets.measure import race
from targets.operator_rows import COPIES, ROUNDING, operators
from targets.samples import Measured
from targets.source_graph import Source, read
from targets.target import Target

__all__ = ["slower_nodes", "written"]


def _silent(_: str) -> None: ...


@contextmanager
def written(models: Mapping[str, ModelProto]) -> Iterator[dict[str, Path]]:
    """Graphs as files in a folder that is removed at the end."""
    with TemporaryDirectory(prefix="attar-") as folder:
        paths = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(models)}
        for name, model in models.items():
            paths[name].write_bytes(model.SerializeToString(deterministic=True))
        yield paths


def slower_nodes(
    float_model: ModelProto,
    int8_model: ModelProto,
    target: Target,
    sample: NDArray[np.float32],
    device: Device | None = None,
    say: Callable[[str], None] = _silent,
) -> list[tuple[frozenset[str], float]]:
    """Runs of neighbouring nodes that seem to be slower in int8 than in float.

    Args:
        float_model: the graph that `int8_model` was placed from: its nodes have the same names. Nodes without a name
            cannot be told apart, and are never in the answer.
        sample: (k, *input shape), real inputs.
        device: instead of the target's own.

    Returns:
        (names of nodes to exclude, microseconds that this saves in a run), the most first; no two overlap. Empty where
        the runtime does not tell operators apart.

    Raises:
        DeviceError: the device did not answer, or its runtime refused a graph.
    """
    with written({"float": float_model, "int8": int8_model}) as paths:
        found = race(target, paths, sample, operators=True, device=device, say=say)
        floats, int8 = (_ran(read(paths[name]), found, name) for name in ("float", "int8"))
        meant = {node.name for node in read(paths["int8"]).quantized}
    return dearest(Costs(float_model, int8_model, floats, int8, meant))


def _ran(source: Source, found: Measured, name: str) -> list[Ran]:
    """Executed operators in order. The profiler ran one graph after the other, and latencies were taken in turns: so
    the times are scaled to add up to these."""
    samples = found.models[name]
    if not samples.operators:
        return []
    latency_us = 1e3 * float(np.median(np.concatenate([np.asarray(block) for block in samples.latency_ms])))
    rows = operators(source, samples.operators, 0.95, latency_us)
    scale = latency_us / (sum(op.us for op in rows) or latency_us)
    made = []
    for op, row in zip(rows, samples.operators["nodes"], strict=True):
        moves = op.op_type in ROUNDING or (op.op_type in COPIES and op.source is None)
        size = sum(math.prod(shape) for _, shape in row["outputs"])
        made.append(Ran(op.source.name if op.source else "", scale * op.us, size, moves, op.precision == "int8"))
    return made
