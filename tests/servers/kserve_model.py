"""KServe's own model server over a folder `<name>/<version>/model.onnx`: the newest version of each model.

python kserve_model.py --http_port=... --grpc_port=... --models=FOLDER
"""

import argparse
import uuid
from pathlib import Path

import onnxruntime
import uvicorn
from grpc.aio import _server
from kserve import InferOutput, InferResponse, Model, ModelServer

NAMES = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(uint8)": "UINT8"}


class OnnxModel(Model):
    """One ONNX file, answered from by onnxruntime."""

    def __init__(self, name, path):
        super().__init__(name)
        self.path = path

    def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        self.ready = True
        return True

    async def get_input_types(self):
        return _types(self.session.get_inputs())

    async def get_output_types(self):
        return _types(self.session.get_outputs())

    async def predict(self, payload, headers=None, response_headers=None):
        found = self.session.run(None, {value.name: value.as_numpy() for value in payload.inputs})
        outputs = []
        for value, array in zip(self.session.get_outputs(), found, strict=True):
            output = InferOutput(value.name, list(array.shape), NAMES[value.type])
            output.set_data_from_numpy(array, binary_data=True)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or str(uuid.uuid4()),  # without one, the JSON path answers 500
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


def _types(values):
    return [
        {
            "name": value.name,
            "datatype": NAMES[value.type],
            "shape": [size if isinstance(size, int) else -1 for size in value.shape],
        }
        for value in values
    ]


class _Loopback(uvicorn.Config):
    """KServe listens on all addresses, and has no flag for that."""

    def __init__(self, app, **options):
        super().__init__(app, **{**options, "host": "127.0.0.1"})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True)
    folder = parser.parse_known_args()[0].models
    uvicorn.Config = _Loopback
    port = _server.Server.add_insecure_port
    _server.Server.add_insecure_port = lambda self, address: port(self, address.replace("[::]", "127.0.0.1"))
    models = []
    for each in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        versions = [path for path in each.iterdir() if path.name.isdigit()] if each.is_dir() else []
        if versions:
            models.append(OnnxModel(each.name, max(versions, key=lambda path: int(path.name)) / "model.onnx"))
            models[-1].load()
    ModelServer(enable_latency_logging=False).start(models)


if __name__ == "__main__":
    main()
