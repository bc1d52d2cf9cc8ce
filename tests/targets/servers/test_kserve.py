"""KServe's InferenceService, against its published schema and its own typed models; its storage in the real Triton."""

import copy
import json
import subprocess
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from shipments import ask, body, put, shipment, values

from targets.errors import InputError
from targets.servers.kserve import STORAGE, layout
from targets.servers.lowering import fitted
from targets.servers.publish import publish
from targets.servers.shipment import Options

PUBLISHED = json.loads((Path(__file__).parent / "schemas" / "kserve_inferenceservice.json").read_text(encoding="utf-8"))
FILE = "tiny.inferenceservice.yaml"


def strict(schema):
    """Kubernetes drops keys that a schema does not name; here they are faults."""
    schema = copy.deepcopy(schema)

    def close(part):
        if isinstance(part, dict):
            if isinstance(part.get("properties"), dict) and part.get("type") == "object":
                part.setdefault("additionalProperties", False)
            for each in part.values():
                close(each)

    close(schema)
    return schema


def service(made, there=None, file=FILE):
    found = yaml.safe_load(made.root[file](there))
    jsonschema.validate(found, strict(PUBLISHED))
    return found


def test_the_service_says_what_the_target_says(tmp_path):
    found = service(layout(shipment(tmp_path, runtime={"threads": 2}), Options(instances=2)))
    assert (found["apiVersion"], found["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = found["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "onnx", "version": "1"}
    assert (model["runtime"], model["protocolVersion"]) == ("kserve-tritonserver", "v2")
    assert model["storageUri"] == STORAGE
    assert model["resources"]["limits"] == {"cpu": "4", "memory": "2Gi"}
    assert "runtimeVersion" not in model


def test_the_schema_would_find_a_wrong_key(tmp_path):
    found = service(layout(shipment(tmp_path), Options()))
    found["spec"]["predictor"]["model"]["storageURI"] = "s3://x"
    with pytest.raises(jsonschema.ValidationError, match="storageURI"):
        jsonschema.validate(found, strict(PUBLISHED))


def test_the_storage_is_a_triton_repository(tmp_path):
    made = layout(shipment(tmp_path), Options())
    assert {"config.pbtxt", "labels.txt", "warmup/golden_sample"} <= set(made.shared)
    assert {"model.onnx", "manifest.json"} == set(made.version)
    assert made.batch == 8
    assert any("fill in storageUri" in note for note in made.notes)
    assert made.start("'my models'") == f"kubectl apply -f 'my models'/{FILE}"


def test_a_gpu_is_asked_for(tmp_path):
    found = service(layout(shipment(tmp_path, runtime={"provider": "CUDAExecutionProvider"}), Options()))
    assert found["spec"]["predictor"]["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(("asked", "tag"), [("", None), ("0.20", None), ("25.1", "25.01-py3"), ("25.10", "25.10-py3")])
def test_another_triton_can_be_named(tmp_path, asked, tag):
    found = service(layout(shipment(tmp_path), Options(server_version=asked)))
    assert found["spec"]["predictor"]["model"].get("runtimeVersion") == tag


def test_what_its_owner_changed_stays(tmp_path):
    made = layout(shipment(tmp_path), Options(server_version="24.10"))
    mine = service(made)
    mine["metadata"] |= {"namespace": "shop", "name": "mine"}
    mine["spec"]["predictor"]["minReplicas"] = 3
    mine["spec"]["predictor"]["model"]["storageUri"] = "s3://models/here"
    mine["spec"]["predictor"]["model"]["resources"]["limits"]["memory"] = "1Gi"
    mine["metadata"]["annotations"]["attar/sha256"] = "old"
    ours = shipment(tmp_path)
    again = service(layout(ours, Options()), yaml.safe_dump(mine).encode())
    assert (again["metadata"]["namespace"], again["metadata"]["name"]) == ("shop", "mine")
    assert again["metadata"]["annotations"]["attar/sha256"] == ours.model.sha256
    predictor = again["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["model"]["storageUri"]) == (3, "s3://models/here")
    assert predictor["model"]["resources"]["limits"]["memory"] == "1Gi"
    assert "runtimeVersion" not in predictor["model"]  # that one is this shipment's


@pytest.mark.parametrize("empty", ["metadata:", "metadata: {annotations: }"])
def test_what_its_owner_left_empty_is_filled(tmp_path, empty):
    there = f"kind: InferenceService\n{empty}\nspec: {{predictor: {{model: {{storageUri: 's3://x'}}}}}}\n".encode()
    ours = shipment(tmp_path)
    found = yaml.safe_load(layout(ours, Options()).root[FILE](there))
    assert found["metadata"] == {"name": "tiny", "annotations": {"attar/sha256": ours.model.sha256}}
    assert found["spec"]["predictor"]["model"]["storageUri"] == "s3://x"


@pytest.mark.parametrize(
    "there", [b"a: 2024-13-99", b"kind: InferenceService\nmetadata: x\nspec: {predictor: {model: {}}}"]
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, there):
    with pytest.raises(InputError, match="is there and is no InferenceService"):
        layout(shipment(tmp_path), Options()).root[FILE](there)


@pytest.mark.parametrize(
    "there", [b"kind: Pod", b"- a", b"{", b"\xff", b"kind: InferenceService\nspec: {predictor: {}}"]
)
def test_a_file_of_something_else_is_refused(tmp_path, there):
    with pytest.raises(InputError, match=r"tiny\.inferenceservice\.yaml: is there and is no InferenceService"):
        layout(shipment(tmp_path), Options()).root[FILE](there)


def test_a_file_that_is_nested_too_deeply_is_told(tmp_path):
    dest = tmp_path / "models"
    dest.mkdir()
    (dest / FILE).write_bytes(b"[" * 1000)
    with pytest.raises(InputError, match=rf"models/{FILE}: is nested too deeply to be read\n.*take it away"):
        publish(layout(shipment(tmp_path), Options()), dest, "tiny")
    assert [path.name for path in dest.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("name", "label"), [("Tiny_Net.v2", "tiny-net-v2"), ("8bit", "model-8bit"), ("a" * 90, "a" * 63)]
)
def test_the_services_name_is_one_that_kubernetes_takes(tmp_path, name, label):
    made = layout(shipment(tmp_path, name=name), Options())
    assert service(made, file=f"{name}.inferenceservice.yaml")["metadata"]["name"] == label


TYPED = """
import sys, yaml, kserve
def built(value, kind):
    if kind.startswith("list["):
        return [built(each, kind[5:-1]) for each in value]
    made = getattr(kserve, kind, None)
    if made is None or not hasattr(made, "openapi_types"):
        return value
    names = {theirs: ours for ours, theirs in made.attribute_map.items()}
    return made(**{names[key]: built(each, made.openapi_types[names[key]]) for key, each in value.items()})
service = built(yaml.safe_load(sys.stdin), "V1beta1InferenceService")
print(type(service.spec.predictor.model).__name__, service.spec.predictor.model.model_format.name)
"""


@pytest.mark.server
def test_kserves_own_types_take_the_service(tmp_path):
    from install import installed, python_of

    text = layout(shipment(tmp_path), Options()).root[FILE](None)
    command = [python_of(installed("kserve")), "-c", TYPED]
    done = subprocess.run(command, input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.split() == [b"V1beta1ModelSpec", b"onnx"]


@pytest.mark.server
def test_the_real_triton_serves_the_storage_with_a_model_brought_down(tmp_path):
    from running import triton

    ours = shipment(tmp_path)
    lower = fitted(ours, "kserve", "")
    assert lower.model.opset < ours.model.opset
    put(layout(lower, Options()), tmp_path / "storage", "tiny", 1)
    with triton(tmp_path / "storage") as server:
        status, answer = ask(server.http, "tiny", body(ours.sample))
        assert status == 200
        np.testing.assert_array_equal(values(answer), ours.answers)


@pytest.mark.server
def test_kserves_own_server_serves_the_storage(tmp_path):
    from running import kserve

    ours = shipment(tmp_path)
    put(layout(fitted(ours, "kserve", ""), Options()), tmp_path / "storage", "tiny", 1)
    with kserve(tmp_path / "storage") as server:
        status, answer = ask(server.http, "tiny", body(ours.sample))
        assert status == 200
        np.testing.assert_array_equal(values(answer), ours.answers)
