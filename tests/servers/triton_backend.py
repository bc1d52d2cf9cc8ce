"""Stands in for Triton's ONNX Runtime backend, which no pip package has: a Python-based backend of the same name.

The real server loads it for `backend: "onnxruntime"`; everything but the computing itself is Triton's own. What
Triton's backend refuses at load is refused here too: dims in the config that are not the graph's, and a batch where
there is none.

    https://github.com/triton-inference-server/python_backend#python-based-custom-backend
    https://github.com/triton-inference-server/backend/blob/main/src/backend_model.cc

The variable BACKEND_DISTURB ("digits:2", comma-separated) names versions that answer wrongly. A file
`load digits:2` or `answer digits:2` in the folder BACKEND_HOLD makes that version wait until it is gone;
`load digits:2.here` then says that it does. A warm-up is no answer.
"""

import os
import sys
import time

sys.path[:0] = os.environ["BACKEND_SITE"].split(":")  # the stub's interpreter ignores PYTHONPATH

import json  # noqa: E402
from pathlib import Path  # noqa: E402

import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb  # noqa: E402

_DTYPES = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)", "TYPE_UINT8": "tensor(uint8)"}


class TritonPythonModel:
    """One instance of a model's version."""

    def initialize(self, args):
        self.version = f"{args['model_name']}:{args['model_version']}"
        _hold(f"load {self.version}")
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        model = folder / (config.get("default_model_filename") or "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.inputs = [value["name"] for value in config["input"]]
        self.outputs = [value["name"] for value in config["output"]]
        for kind, ours, theirs in (
            ("input", config["input"], self.session.get_inputs()),
            ("output", config["output"], self.session.get_outputs()),
        ):
            _check(kind, ours, {value.name: value for value in theirs}, config["max_batch_size"])
        self.warmups = len(config.get("model_warmup", []))
        disturbed = os.environ.get("BACKEND_DISTURB", "").split(",")
        self.wrong = self.version in disturbed

    def execute(self, requests):
        if self.warmups:
            self.warmups -= 1
        else:
            _hold(f"answer {self.version}")
        answers = []
        for request in requests:
            feeds = {name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            try:
                found = self.session.run(self.outputs, feeds)
            except Exception as error:
                answers.append(pb.InferenceResponse(error=pb.TritonError(str(error))))
                continue
            if self.wrong:
                found = [value + 1 for value in found]
            tensors = [pb.Tensor(name, value) for name, value in zip(self.outputs, found, strict=True)]
            answers.append(pb.InferenceResponse(output_tensors=tensors))
        return answers


def _hold(what):
    path = Path(os.environ.get("BACKEND_HOLD") or os.devnull) / what
    while path.exists():
        path.with_name(f"{what}.here").touch()
        time.sleep(0.02)


def _check(kind, configured, graph, max_batch):
    if kind == "input" and len(configured) != len(graph):
        raise ValueError(f"the config has {len(configured)} inputs, and the graph {len(graph)}")
    for value in configured:
        name = value["name"]
        if name not in graph:
            raise ValueError(f"the graph has no {kind} {name!r}; it has {', '.join(graph)}")
        if _DTYPES.get(value["data_type"]) != graph[name].type:
            raise ValueError(f"{kind} {name!r} is {graph[name].type}, and the config says {value['data_type']}")
        theirs = [size if isinstance(size, int) else -1 for size in graph[name].shape]
        ours = [int(size) for size in value["dims"]]
        if max_batch > 0:
            if not theirs or theirs[0] != -1:
                raise ValueError(f"{kind} {name!r} has no open batch, and the config says max_batch_size {max_batch}")
            theirs = theirs[1:]
        # An open size of the graph takes any in the config; a fixed one only itself.
        if len(ours) != len(theirs) or any(b not in (-1, a) for a, b in zip(ours, theirs, strict=True)):
            raise ValueError(f"{kind} {name!r} has dims {theirs}, and the config says {ours}")
