"""A small server of the Open Inference Protocol v2 in a thread of this process, over HTTP and gRPC: it computes with
onnxruntime, and can be told to go wrong in ways that a sound server does not."""

import json
import threading
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime

LENGTH = "Inference-Header-Content-Length"


class Oip:
    """What is served, and how it goes wrong.

    Attributes:
        spoil: what becomes of an answer. binary: whether it takes binary tensors, as MLServer does not.
        instead: (method, path) -> (status, body) that is answered instead.
        hang_up: how many requests are met by ending the connection.
    """

    def __init__(self, model, name="tiny"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.name, self.binary, self.extensions, self.instead, self.hang_up = name, True, [], {}, 0
        self.spoil = lambda y: y
        self.datatype = "FP32"
        self.asked, self.connections = [], 0

    def tensors(self, values):
        shapes = [[size if isinstance(size, int) else -1 for size in value.shape] for value in values]
        pairs = zip(values, shapes, strict=True)
        return [{"name": value.name, "datatype": "FP32", "shape": shape} for value, shape in pairs]

    def metadata(self):
        inputs, outputs = self.tensors(self.session.get_inputs()), self.tensors(self.session.get_outputs())
        return {"name": self.name, "versions": ["1"], "platform": "onnx", "inputs": inputs, "outputs": outputs}

    def infer(self, x):
        return self.spoil(self.session.run(None, {self.session.get_inputs()[0].name: x})[0])


def _handler(oip):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self):
            super().setup()
            oip.connections += 1

        def log_message(self, *_): ...

        def do_GET(self):
            self.answered()

        def do_POST(self):
            self.answered()

        def answered(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            oip.asked.append((self.command, self.path, self.headers.get("Content-Type")))
            if oip.hang_up:
                oip.hang_up -= 1
                self.close_connection = True
                return
            status, data, headers = self.found(body)
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def found(self, body):
            if (self.command, self.path) in oip.instead:
                return *oip.instead[self.command, self.path], {}
            model = f"/v2/models/{oip.name}"
            if self.path == "/v2":
                return 200, {"name": "oip", "version": "1.0", "extensions": oip.extensions}, {}
            if self.path == "/v2/repository/index":
                return 200, [{"name": oip.name, "state": "READY"}], {}
            if self.path in (model, f"{model}/versions/1"):
                return 200, oip.metadata(), {}
            if self.path in (f"{model}/ready", f"{model}/versions/1/ready"):
                return 200, {}, {}
            if self.path in (f"{model}/infer", f"{model}/versions/1/infer"):
                return self.inferred(body)
            return 404, {"error": f"no {self.path} here"}, {}

        def inferred(self, body):
            length = self.headers.get(LENGTH)
            if length and not oip.binary:
                return 422, {"detail": "JSON is wanted"}, {}
            head = int(length) if length else len(body)
            told = json.loads(body[:head])
            tensor = told["inputs"][0]
            data = np.frombuffer(body[head:], "<f4") if length else np.asarray(tensor["data"], np.float32)
            try:
                y = oip.infer(data.reshape(tensor["shape"]))
            except Exception as error:
                return 400, {"error": str(error)}, {}
            output = {"name": told["outputs"][0]["name"], "datatype": oip.datatype, "shape": list(y.shape)}
            if not length:
                return 200, {"id": told["id"], "outputs": [output | {"data": y.ravel().tolist()}]}, {}
            output["parameters"] = {"binary_data_size": y.nbytes}
            text = json.dumps({"id": told["id"], "outputs": [output]}).encode()
            return 200, text + y.tobytes(), {LENGTH: str(len(text))}

    return Handler


@contextmanager
def http(oip):
    """Its address, "127.0.0.1:port", while it serves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(oip))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def grpc(oip):
    """Likewise over gRPC, by the service that `tritonclient` brings."""
    import grpc
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc import service_pb2_grpc

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelReady(self, request, context):
            return pb.ModelReadyResponse(ready=request.name == oip.name)

        def ServerMetadata(self, request, context):
            return pb.ServerMetadataResponse(name="oip", version="1.0")

        def ModelMetadata(self, request, context):
            if request.name != oip.name:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no {request.name} here")
            return pb.ModelMetadataResponse(**oip.metadata())

        def RepositoryIndex(self, request, context):
            index = pb.RepositoryIndexResponse
            return index(models=[index.ModelIndex(name=oip.name)])

        def ModelInfer(self, request, context):
            x = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(list(request.inputs[0].shape))
            try:
                y = oip.infer(x)
            except Exception as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            found = pb.ModelInferResponse(model_name=oip.name, model_version="1", id=request.id)
            found.outputs.add(name=request.outputs[0].name, datatype=oip.datatype, shape=y.shape)
            found.raw_output_contents.append(y.tobytes())
            return found

    server = grpc.server(futures.ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
