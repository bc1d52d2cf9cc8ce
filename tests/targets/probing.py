"""The probe as a device sees it, for tests: one zip file, run by itself. Or a job of it, done in this process."""

import gc
import json
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from targets.devices.bundle import bundle
from targets.probe import job as one_job

METER = {"warmup_s": 0.02, "samples": 60, "blocks": 4, "max_seconds": 10, "throughput_batch": 8, "energy_s": 0.2}
RUNTIME = {"provider": "CPUExecutionProvider", "options": {}, "fallback": [], "threads": 1}
ENERGY = {"powercap": "/nowhere", "hwmon": "/nowhere", "rails": []}


def job(models, tasks, inputs=None, whole=False, axes=None, **changes):
    """A job whose models are `<name>.onnx` and all take the same inputs; a change to None leaves a key out."""
    inputs = {"x": "x.npy"} if inputs is None else inputs
    specs = {m: {"file": f"{m}.onnx", "inputs": inputs, "whole": whole, "axes": axes or {}} for m in models}
    found = {"version": 2, "tasks": list(tasks), "models": specs, "runtime": RUNTIME, "meter": METER}
    found |= {"energy": ENERGY, "batch": 4, **changes}
    return {key: value for key, value in found.items() if value is not None}


def run(folder, tasks, models=("a",), before="", **changes):
    """(exit code, answer) of the probe in a process of its own.

    Args:
        before: Python text that runs in that process first.
    """
    (folder / "probe.pyz").write_bytes(bundle())
    (folder / "job.json").write_text(json.dumps(job(models, tasks, **changes)))
    command = [sys.executable, "-I", folder / "probe.pyz", folder / "job.json"]
    if before:
        script = f"import sys\nsys.path.insert(0, {str(folder / 'probe.pyz')!r})\n{before}\n"
        script += f"from targets.probe.job import main\nsys.exit(main(['probe', {str(folder / 'job.json')!r}]))"
        command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads((folder / "result.json").read_text())


def run_here(folder, tasks, models=("a",), **changes):
    """The same without a process: for answers that do not depend on one. No limit is set on this process's memory."""
    (folder / "job.json").write_text(json.dumps(job(models, tasks, **changes)))
    try:
        with patch.object(one_job.memory, "guard", return_value=None):
            code = one_job.main(["probe", str(folder / "job.json")])
    finally:
        gc.enable()  # a job that fails while it measures ends with its process
    return code, json.loads((folder / "result.json").read_text())


def value(name, shape, kind=TensorProto.FLOAT):
    """An input or output of a graph."""
    return helper.make_tensor_value_info(name, kind, shape)


def weights(name, *shape):
    """Random float32 weights."""
    return numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)


def save(path, nodes, inputs, outputs, initializers=()):
    """Writes a graph as a model."""
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
