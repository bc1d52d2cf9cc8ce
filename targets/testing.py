"""For tests of what stands on a device: a fake device that returns given samples, and a tiny real network.

The fake takes the place of a real device wherever `targets.measure` takes `device=`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.errors import DeviceError
from targets.probe import VERSION

__all__ = ["FakeDevice", "tiny_onnx"]


def tiny_onnx(
    path: Path,
    *,
    shape: tuple[int, ...] = (3, 4, 4),
    width: int = 32,
    classes: int = 10,
    batch: int | str = "batch",
    opset: int = 20,
    ir_version: int = 10,
) -> Path:
    """Writes a two-layer network with random weights: x (batch, *shape) -> y (batch, classes)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    sizes = {"w1": (math.prod(shape), width), "w2": (width, classes)}
    weights = [numpy_helper.from_array(random.standard_normal(size).astype(np.float32), n) for n, size in sizes.items()]
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])
    graph = helper.make_graph(nodes, "tiny", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, path)
    return path


@dataclass
class FakeDevice:
    """A device that answers with what it was given.

    Attributes:
        latency_ms: by model name, the latencies in the order in which they are "measured"; they are cut into
            `meter.blocks` blocks. A model without any gets 1.0 ms throughout.
        peak_memory_mb: by model name; 50 MB where there is none.
        compute: inputs (n, ...) -> outputs (n, classes), for `outputs`.
        operators, assignment, energy: by model name, answers to these tasks in the probe's form; plain ones where there
            are none.
        facts: laid over what `identity` says.
        error: when set, every run fails with it.
        jobs: the jobs that were run, for a test to look at.
    """

    latency_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    peak_memory_mb: Mapping[str, float] = field(default_factory=dict)
    compute: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    operators: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assignment: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    energy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    jobs: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def open(self, say: Callable[[str], None] = lambda text: None) -> Iterator[FakeWorkspace]:
        """A folder that keeps what is put there."""
        with tempfile.TemporaryDirectory(prefix="attar-fake-") as folder:
            yield FakeWorkspace(self, Path(folder))

    def identity(self) -> dict[str, Any]:
        """The same each time."""
        cpu = {"model": "fake", "machine": "fake", "cores": 1, "flags": []}
        runtime = {"python": "3.11", "numpy": "2.0", "onnxruntime": "1.22", "providers": ["CPUExecutionProvider"]}
        return {**cpu, **runtime, **self.facts}


class FakeWorkspace:
    """See `targets.devices.Workspace`."""

    def __init__(self, device: FakeDevice, folder: Path) -> None:
        self.device, self.folder = device, folder

    def put(self, source: Path, name: str) -> None:
        """Copies a file in."""
        (self.folder / name).write_bytes(source.read_bytes())

    def get(self, name: str) -> Path:
        """A file in the workspace."""
        return self.folder / name

    def run(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Answers as the probe would."""
        self.device.jobs.append(dict(job))
        if self.device.error:
            raise DeviceError(self.device.error)
        found = {name: self._model(name, number, job) for number, name in enumerate(job["models"])}
        environment = {"cpu": self.device.identity(), "onnxruntime": "fake", "before": {}, "after": {}}
        return {"version": VERSION, "environment": environment, "models": found}

    def _model(self, name: str, number: int, job: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        tasks = job["tasks"]
        if "session" in tasks:
            found["session_ms"] = [1.0]
        if "latency" in tasks:
            given = self.device.latency_ms.get(name, [1.0] * job["meter"]["samples"])
            size = max(1, len(given) // job["meter"]["blocks"])
            found["latency_ms"] = [list(given[i : i + size]) for i in range(0, len(given), size)]
            found["warmup"] = {"seconds": 0.1, "stable": True}
        if "operators" in tasks:
            found["operators"] = self.device.operators.get(name, {"runs": 0, "run_us": [], "nodes": []})
            found["assignment"] = self.device.assignment.get(name)
        if "energy" in tasks:
            found["energy"] = self.device.energy.get(name, {"instrument": "", "remark": "", "windows": []})
        if "throughput" in tasks:
            found["throughput_per_s"] = [1e3 / float(np.median(block)) for block in found["latency_ms"]]
        if "memory" in tasks:
            found |= {"peak_memory_mb": self.device.peak_memory_mb.get(name, 50.0), "runtime_memory_mb": 40.0}
        if "outputs" in tasks:
            if self.device.compute is None:
                raise DeviceError("this fake device was given nothing to compute outputs with")
            (file,) = job["models"][name]["inputs"].values()
            inputs = np.load(self.folder / file, allow_pickle=False)
            found["outputs"] = f"outputs{number}.npy"
            np.save(self.folder / found["outputs"], self.device.compute(inputs))
        return found
