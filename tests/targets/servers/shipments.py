"""Small shipments of real graphs, and questions to real servers."""

import dataclasses
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from profiled_graphs import quantized

from targets.artifact import load
from targets.servers.shipment import Shipment
from targets.target import Target

sys.path.append(str(Path(__file__).parents[2] / "servers"))  # running.py, which starts servers

LABELS = tuple(f"class {i}" for i in range(10))
PREPROCESSING = {"divide_by": 16.0, "layout": "batch, channels, height, width"}


def run(path, sample):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: sample})[0]


def shipment(folder, name="tiny", batch="batch", runtime=None, edit=None, **changes):
    """An int8 graph: x (batch, 16, 14, 14) -> y (batch, 10). `edit` gets the model before it is saved."""
    path = quantized(folder / f"{name}.onnx")
    model = onnx.load(path)
    if isinstance(batch, int):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    if edit:
        edit(model)
    onnx.save(model, path)
    sample = np.random.default_rng(1).standard_normal((4, 16, 14, 14)).astype(np.float32)
    answers = run(path, sample) if not isinstance(batch, int) and not edit else np.zeros((4, 10), np.float32)
    target = Target(name="here", runtime=runtime or {})
    made = Shipment(
        *(name, load(path), target, LABELS, PREPROCESSING, sample, answers), {"manifest.json": b'{"version": 1}\n'}
    )
    return dataclasses.replace(made, **changes)


def put(layout, folder, name, version):
    """Writes a layout, plainly."""
    files = {f"{name}/{version}/{key}": value for key, value in {**layout.version, **layout.added}.items()}
    files |= {f"{name}/{key}": value for key, value in layout.shared.items()}
    for key, value in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            value(version) if callable(value) else value if isinstance(value, bytes) else value.read_bytes()
        )
    for key, merge in layout.root.items():
        path = folder / key
        path.write_bytes(merge(path.read_bytes() if path.exists() else None))


def body(sample, **changes):
    """A v2 request in JSON."""
    tensor = {"name": "x", "shape": list(sample.shape), "datatype": "FP32", "data": sample.ravel().tolist()}
    return {"inputs": [tensor | changes]}


def ask(http, name, request, version=""):
    """(status, answer) of a v2 inference over HTTP."""
    place = f"{name}/versions/{version}" if version else name
    asked = urllib.request.Request(
        f"http://{http}/v2/models/{place}/infer", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def values(answer):
    """The first output of an answer."""
    first = answer["outputs"][0]
    return np.array(first["data"], np.float32).reshape(first["shape"])
