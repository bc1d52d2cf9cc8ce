"""Models brought down to what a server's version takes, and proven there."""

import json

import numpy as np
import onnx
import pytest
from shipments import run, shipment

from targets.errors import InputError
from targets.servers import lowering
from targets.servers.lowering import fitted


def test_what_fits_is_left_alone(tmp_path):
    ours = shipment(tmp_path)
    for server in ("triton", "mlserver", "openvino"):
        assert fitted(ours, server, "") is ours


def test_what_does_not_fit_is_converted_and_proven(tmp_path):
    ours = shipment(tmp_path)
    lower = fitted(ours, "triton", "23.05")
    assert (lower.model.opset, lower.model.ir_version) == (18, 8)  # 19 came with IR version 9
    model = onnx.load(lower.model.path)
    assert [entry.version for entry in model.opset_import] == [18]
    np.testing.assert_array_equal(run(lower.model.path, ours.sample), ours.answers)
    paper = json.loads(lower.papers["conversion.json"])
    assert paper["from"] == {"sha256": ours.model.sha256, "opset": 20, "ir_version": 10}
    assert paper["to"] == {"sha256": lower.model.sha256, "opset": 18, "ir_version": 8}
    assert paper["proof"]["bit_equal"] is True
    assert paper["proof"]["examples"] == 4
    assert "onnxruntime 1.15" in paper["because"]
    assert lower.papers["manifest.json"] == ours.papers["manifest.json"]


def test_only_the_ir_version_is_lowered_where_that_is_enough(tmp_path):
    lower = fitted(shipment(tmp_path), "triton", "24.04")
    assert (lower.model.opset, lower.model.ir_version) == (20, 9)


def test_a_fixed_batch_is_converted_too(tmp_path):
    lower = fitted(shipment(tmp_path, batch=3), "triton", "23.05")
    assert lower.model.inputs[0].shape == (3, 16, 14, 14)


def gelu(model):
    model.graph.node.append(onnx.helper.make_node("Gelu", ["y"], ["late"]))  # there is none before opset 20
    model.graph.output.append(onnx.helper.make_tensor_value_info("late", onnx.TensorProto.FLOAT, ["batch", 10]))


@pytest.mark.parametrize(
    ("asked", "advice"), [("23.05", r"`export: {opset: 18}` in the recipe"), ("22.12", r"help: name a newer server")]
)
def test_an_operator_without_an_older_form_is_refused(tmp_path, asked, advice):
    with pytest.raises(InputError, match=rf"has opset 20 (.|\n)*converting it down failed(.|\n)*{advice}"):
        fitted(shipment(tmp_path, edit=gelu), "triton", asked)


def test_a_converted_model_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    from onnx import numpy_helper, version_converter

    convert = version_converter.convert_version

    def spoiled(model, opset):
        model = convert(model, opset)
        weight = next(t for t in model.graph.initializer if t.name == "w2")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, "w2"))
        return model

    monkeypatch.setattr(version_converter, "convert_version", spoiled)
    with pytest.raises(
        InputError,
        match=r"the converted model answers the golden sample otherwise, by up to .* units in the last place",
    ):
        fitted(shipment(tmp_path), "triton", "23.05")


def test_without_a_golden_sample_nothing_is_proven(tmp_path):
    with pytest.raises(InputError, match="there is no golden sample to prove a converted one on"):
        fitted(shipment(tmp_path, sample=np.zeros((0, 16, 14, 14), np.float32)), "triton", "23.05")


def test_equal_means_within_one_unit_in_the_last_place():
    a = np.array([1.0, -2.0, 0.0, np.nan], np.float32)
    assert lowering._apart(a, a.copy()) == 0
    next_to = np.nextafter(a, np.float32(9))
    assert lowering._apart(a, next_to) == 1
    assert lowering._apart(a, np.nextafter(next_to, np.float32(9))) == 2
    assert lowering._apart(a, np.array([1.0, -2.0, 0.0, 1.0], np.float32)) == -1
    assert lowering._apart(a, a.astype(np.float64)) == -1
    assert lowering._apart(a, a[:2]) == -1
    assert lowering._apart(np.array([1]), np.array([2])) == -1
    assert lowering._apart(np.array([True]), np.array([True])) == 0


def mean(noop):
    def edit(model):
        axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "over")
        model.graph.initializer.append(axes)
        node = onnx.helper.make_node("ReduceMean", ["y", "over"], ["mean"], keepdims=0, noop_with_empty_axes=noop)
        model.graph.node.append(node)
        model.graph.output.append(onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, ["batch"]))

    return edit


def test_an_attribute_that_only_says_the_default_does_not_hinder(tmp_path):
    lower = fitted(shipment(tmp_path, edit=mean(0)), "triton", "22.12")
    assert lower.model.opset == 17
    with pytest.raises(InputError, match="converting it down failed: Unrecognized attribute: noop_with_empty_axes"):
        fitted(shipment(tmp_path, edit=mean(1)), "triton", "22.12")


@pytest.mark.parametrize("kind", [onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError])
def test_the_converters_own_errors_are_told(tmp_path, monkeypatch, kind):
    def fails(model, opset):
        raise kind("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fails)
    with pytest.raises(InputError, match="converting it down failed: no adapter"):
        fitted(shipment(tmp_path), "triton", "23.05")


def test_a_file_that_was_changed_meanwhile_is_not_converted(tmp_path):
    ours = shipment(tmp_path)
    ours.model.path.write_bytes(ours.model.path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="was changed while it was being shipped"):
        fitted(ours, "triton", "23.05")
