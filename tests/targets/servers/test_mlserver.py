"""MLServer's folders: its settings, the class that it runs, and the real server with both."""

import ast
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from shipments import LABELS, PREPROCESSING, ask, body, put, shipment, values

from targets.errors import InputError
from targets.servers.mlserver import RUNTIME, layout
from targets.servers.shipment import Options


def settings(made, version=1):
    return json.loads(made.added["model-settings.json"](version))


def test_the_settings_say_what_the_graph_and_the_target_say(tmp_path):
    made = layout(shipment(tmp_path, runtime={"threads": 2}), Options())
    found = settings(made, 7)
    assert (found["name"], found["implementation"]) == ("tiny", "attar_runtime.OnnxModel")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16, 14, 14]}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}]
    assert (found["parameters"]["uri"], found["parameters"]["version"]) == ("./model.onnx", "7")
    extra = found["parameters"]["extra"]
    assert (extra["provider"], extra["threads"]) == ("CPUExecutionProvider", 2)
    assert (extra["labels"], extra["preprocessing"]) == (list(LABELS), PREPROCESSING)
    assert "max_batch_size" not in found
    assert set(made.version) == {"model.onnx", "manifest.json"}
    assert set(made.added) == {"attar_runtime.py", "model-settings.json"}
    assert made.added["attar_runtime.py"] == RUNTIME.read_bytes()


def test_the_class_that_runs_it_needs_only_mlserver_and_onnxruntime():
    tree = ast.parse(RUNTIME.read_bytes())
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert "OnnxModel" in defined
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"__future__", "typing", "numpy", "onnxruntime", "mlserver"}


def test_a_servers_own_settings_stay(tmp_path):
    merge = layout(shipment(tmp_path), Options()).root["settings.json"]
    assert json.loads(merge(None))["host"] == "127.0.0.1"
    assert json.loads(merge(None))["parallel_workers"] == 0
    assert merge(b'{"host": "0.0.0.0"}') == b'{"host": "0.0.0.0"}'


def test_batches_are_built_where_there_is_time_to_wait(tmp_path):
    ours = shipment(tmp_path)
    found = settings(layout(ours, Options(max_batch=16, delay_us=2000)))
    assert (found["max_batch_size"], found["max_batch_time"]) == (16, 0.002)
    assert any("builds no batches" in note for note in layout(ours, Options(max_batch=16)).notes)


def test_a_fixed_batch(tmp_path):
    made = layout(shipment(tmp_path, batch=2), Options())
    assert settings(made)["inputs"][0]["shape"] == [2, 16, 14, 14]
    assert made.batch == 2
    with pytest.raises(InputError, match="fixed batch of 2, so that MLServer cannot join requests"):
        layout(shipment(tmp_path, batch=2), Options(delay_us=5))


def test_more_instances_are_a_matter_of_the_whole_server(tmp_path):
    assert any("parallel_workers" in note for note in layout(shipment(tmp_path), Options(instances=2)).notes)


def test_a_type_that_it_lacks_is_refused(tmp_path):
    from onnx import TensorProto, helper

    def add(model):
        model.graph.node.append(helper.make_node("Cast", ["y"], ["narrow"], to=TensorProto.BFLOAT16))
        model.graph.output.append(helper.make_tensor_value_info("narrow", TensorProto.BFLOAT16, ["batch", 10]))

    with pytest.raises(InputError, match="has 'narrow' of type bfloat16, which MLServer does not know"):
        layout(shipment(tmp_path, edit=add), Options())


@pytest.mark.server
def test_the_real_server_serves_two_versions_and_refuses_clearly(tmp_path):
    from running import mlserver

    ours = shipment(tmp_path)
    for version in (1, 2):
        put(layout(ours, Options()), tmp_path / "models", "tiny", version)
    with mlserver(tmp_path / "models") as server:
        for version in ("", "1", "2"):
            status, answer = ask(server.http, "tiny", body(ours.sample), version)
            assert (status, answer["model_version"]) == (200, version or "2")
            np.testing.assert_array_equal(values(answer), ours.answers)
        one = ours.sample[:1]
        for request, complaint in (
            (body(one[:, :, :13]), "input 'x' must have the shape (batch, 16, 14, 14); got (1, 16, 13, 14)"),
            (body(one, name="z"), "the model takes the inputs x; got z"),
            (body(one, datatype="FP64"), "input 'x' must be FP32; got FP64"),
            (body(one, data=[1.0, 2.0]), "input 'x' does not hold what its shape"),
            (body(one) | {"outputs": [{"name": "z"}]}, "the model gives y, and not z"),
        ):
            status, answer = ask(server.http, "tiny", request)
            assert status == 400
            assert complaint in answer["error"]
        assert "Traceback" not in server.log()


@pytest.mark.server
def test_the_real_server_joins_requests_and_answers_each(tmp_path):
    from running import mlserver

    ours = shipment(tmp_path)
    put(layout(ours, Options(max_batch=4, delay_us=50_000)), tmp_path / "models", "tiny", 1)
    with mlserver(tmp_path / "models") as server, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: ask(server.http, "tiny", body(ours.sample[i : i + 1])), range(4)))
    for i, (status, answer) in enumerate(found):
        assert status == 200
        np.testing.assert_array_equal(values(answer), ours.answers[i : i + 1])


@pytest.mark.server
def test_the_real_server_says_which_provider_is_missing(tmp_path):
    from running import mlserver

    put(
        layout(shipment(tmp_path, runtime={"provider": "CUDAExecutionProvider"}), Options()),
        tmp_path / "models",
        "tiny",
        1,
    )
    with mlserver(tmp_path / "models") as server:
        status, _ = ask(server.http, "tiny", body(np.zeros((1, 16, 14, 14), np.float32)))
        assert status == 404  # MLServer takes a model that does not load out again
        assert "CUDAExecutionProvider is not in this onnxruntime" in server.log()


FALLEN_BACK = """
import asyncio, sys
import onnxruntime
from mlserver import ModelSettings
sys.path.insert(0, sys.argv[1])
from attar_runtime import OnnxModel
# One that onnxruntime takes for there and that it then does without, as it does where CUDA's libraries are missing.
onnxruntime.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
settings = ModelSettings.parse_file(sys.argv[1] + "/model-settings.json")
settings.parameters.uri = sys.argv[1] + "/model.onnx"
asyncio.run(OnnxModel(settings).load())
"""


@pytest.mark.server
def test_a_provider_that_onnxruntime_does_without_is_refused(tmp_path):
    from install import installed, python_of

    cuda = shipment(tmp_path, runtime={"provider": "CUDAExecutionProvider"})
    put(layout(cuda, Options()), tmp_path / "models", "tiny", 1)
    command = [python_of(installed("mlserver")), "-c", FALLEN_BACK, tmp_path / "models" / "tiny" / "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: CUDAExecutionProvider refused the model, and onnxruntime fell back to CPUExecutionProvider"
    ), done.stderr
