"""OpenVINO Model Server's list of models, against the schema that the server itself holds it against."""

import json
from pathlib import Path

import jsonschema
import pytest
from shipments import shipment

from targets.errors import InputError
from targets.servers.openvino import layout
from targets.servers.publish import publish
from targets.servers.shipment import Options

SCHEMA = json.loads((Path(__file__).parent / "schemas" / "openvino_config.json").read_text(encoding="utf-8"))


def merged(made, there=None):
    config = json.loads(made.root["config.json"](there))
    jsonschema.validate(config, SCHEMA)
    return config


def test_the_list_says_what_the_target_says(tmp_path):
    made = layout(shipment(tmp_path, runtime={"threads": 2}), Options(instances=3))
    (entry,) = (each["config"] for each in merged(made)["model_config_list"])
    assert (entry["name"], entry["base_path"]) == ("tiny", "tiny")
    assert entry["plugin_config"] == {"INFERENCE_NUM_THREADS": 6, "NUM_STREAMS": 3}
    assert (entry["target_device"], entry["nireq"]) == ("CPU", 3)
    assert set(made.version) == {"model.onnx", "manifest.json"}
    assert set(made.shared) == {"labels.txt", "preprocessing.json"}


def test_the_schema_would_find_a_wrong_key(tmp_path):
    config = merged(layout(shipment(tmp_path), Options()))
    config["model_config_list"][0]["config"]["threads"] = 1
    with pytest.raises(jsonschema.ValidationError, match="threads"):
        jsonschema.validate(config, SCHEMA)


def test_other_models_and_settings_stay(tmp_path):
    there = merged(layout(shipment(tmp_path, name="other"), Options()))
    there["monitoring"] = {"metrics": {"enable": True}}
    made = layout(shipment(tmp_path), Options())
    both = merged(made, json.dumps(there).encode())
    assert both["monitoring"] == there["monitoring"]
    assert both["model_config_list"][0] == there["model_config_list"][0]
    again = merged(layout(shipment(tmp_path), Options(instances=2)), json.dumps(both).encode())
    assert [each["config"]["name"] for each in again["model_config_list"]] == ["other", "tiny"]
    assert again["model_config_list"][1]["config"]["nireq"] == 2


def test_a_file_of_something_else_is_named_with_its_folder(tmp_path):
    dest = tmp_path / "models"
    dest.mkdir()
    (dest / "config.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=rf"^{dest}/config\.json: is there and is no list of models"):
        publish(layout(shipment(tmp_path), Options()), dest, "tiny")


@pytest.mark.parametrize(
    "there", [b"{}", b"[]", b"no json", b'{"model_config_list": [1]}', b'{"model_config_list": {}}']
)
def test_a_file_of_something_else_is_refused(tmp_path, there):
    merge = layout(shipment(tmp_path), Options()).root["config.json"]
    with pytest.raises(InputError, match=r"config\.json: is there and is no list of models"):
        merge(there)


def test_a_file_that_is_nested_too_deeply_is_told(tmp_path):
    dest = tmp_path / "models"
    dest.mkdir()
    (dest / "config.json").write_bytes(b"[" * 100_000)
    with pytest.raises(InputError, match=r"models/config\.json: is nested too deeply to be read\n.*take it away"):
        publish(layout(shipment(tmp_path), Options()), dest, "tiny")
    assert [path.name for path in dest.iterdir()] == ["config.json"]


def test_a_device_of_openvino_is_taken_over(tmp_path):
    runtime = {"provider": "OpenVINOExecutionProvider", "options": {"device_type": "GPU"}}
    made = layout(shipment(tmp_path, runtime=runtime), Options())
    assert merged(made)["model_config_list"][0]["config"]["target_device"] == "GPU"
    assert not any("measured with" in note for note in made.notes)


def test_another_runtime_than_the_measured_one_is_said(tmp_path):
    assert any("measured with CPUExecutionProvider" in n for n in layout(shipment(tmp_path), Options()).notes)


def test_a_fixed_batch(tmp_path):
    assert layout(shipment(tmp_path, batch=2), Options()).batch == 2
    with pytest.raises(InputError, match="so that OpenVINO Model Server cannot join requests"):
        layout(shipment(tmp_path, batch=2), Options(max_batch=4))
