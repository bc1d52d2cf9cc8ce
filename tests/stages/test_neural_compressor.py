"""neural-compressor's ranges: do their names mean the same values as in the ONNX graph?"""

import logging
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from pydantic import ValidationError
from torch import nn

from stages import graph
from stages.base import Signature
from stages.export import export
from stages.network import build, construct, save_weights
from stages.quantize import quantize
from stages.settings import ExportConfig, QuantizeConfig
from stages.testing import context, digest_of, tiny_splits, tiny_teacher
from stages.vendors import ort_quantizer
from stages.vendors.neural_compressor import activation_ranges
from targets.errors import StageError

TINY = tiny_splits()


def both(candidate, batches):
    """(neural-compressor's ranges, the extremes that onnxruntime sees) on the same inputs."""
    ranges = activation_ranges(build(candidate), candidate.signature, batches)
    return ranges, ort_quantizer.calibrate(graph.read(candidate.onnx), lambda: iter(batches))


@pytest.mark.parametrize("name", ["seed_cnn", "projection", "padded"])
def test_equal_names_are_equal_values(exported, digits, name):
    """On one batch its moving average is the extremes themselves, with zero added."""
    ranges, extremes = both(exported[name], [digits.train.inputs(slice(0, 16))])
    assert len(ranges) >= 5
    for value, (low, high) in ranges.items():
        least, most = min(extremes[value][0], 0.0), max(extremes[value][1], 0.0)
        near = 0.51 * (most - least) / 255
        assert (low, high) == (pytest.approx(least, abs=near), pytest.approx(most, abs=near)), value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seed_cnn", "input relu relu_1 relu_2 relu_3"),
        ("projection", "input relu relu_1 relu_2 relu_3 batch_norm_5 relu_4 relu_5 batch_norm_8"),
    ],
)
def test_the_names(exported, digits, name, expected):
    ranges, _ = both(exported[name], [digits.train.inputs(slice(0, 8))])
    assert sorted(ranges) == sorted(expected.split())


@pytest.mark.parametrize("source", ["tiny_concat", "tiny_mobile"])
def test_other_networks_match_too(tmp_path, source):
    teacher = tiny_teacher(tmp_path / "t", TINY, f"stages.testing:{source}", epochs=1)
    candidate = export(teacher, ExportConfig(), context(tmp_path / "e", TINY))
    ranges, extremes = both(candidate, [TINY.train.inputs(slice(0, 32))])
    assert ranges.keys() <= extremes.keys()
    assert len(ranges) >= 3


@pytest.mark.parametrize("calibration", ["minmax", pytest.param("entropy", marks=pytest.mark.slow)])
def test_both_engines_make_like_networks(exported, digits, tmp_path, calibration):
    candidate, images = exported["projection"], digits.test.inputs(slice(0, 300))
    made = {
        engine: quantize(
            candidate,
            QuantizeConfig(engine=engine, calibration=calibration, samples=64),
            context(tmp_path / engine, digits),
        )
        for engine in ("onnxruntime", "neural_compressor")
    }
    for engine, result in made.items():
        assert result.steps[-1].metrics["agreement"] > 0.95, engine
    one, other = (graph.predict(graph.session(result.onnx), images) for result in made.values())
    assert (one.argmax(1) == other.argmax(1)).mean() > 0.93
    assert np.abs(one - other).max() < 0.25 * np.abs(one).max()
    kinds = [[node.op_type for node in onnx.load(result.onnx).graph.node] for result in made.values()]
    assert kinds[0] == kinds[1]  # the same placement, so the same kernels
    notes = made["neural_compressor"].steps[-1].notes
    assert "stayed float: 1 ReduceMean, 1 Reshape" in notes
    assert any(note.startswith("neural-compressor: 9 of its 9 ranges matched by value name; min-max") for note in notes)


def test_auto_is_onnxruntime(exported, digits, tmp_path):
    results = [
        quantize(exported["projection"], QuantizeConfig(engine=engine, samples=64), context(tmp_path / engine, digits))
        for engine in ("auto", "onnxruntime")
    ]
    assert digest_of(results[0].onnx.parent) == digest_of(results[1].onnx.parent)


def test_it_leaves_the_network_and_the_logs_alone(exported, digits, capfd, caplog):
    candidate, root = exported["projection"], list(logging.root.handlers)
    module = build(candidate)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    activation_ranges(module, candidate.signature, [digits.train.inputs(slice(0, 8))])
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert not module.training
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert logging.root.handlers == root


def test_a_graph_of_other_weights_is_noticed(exported, digits, tmp_path):
    candidate = exported["projection"]
    module = construct(candidate.origin, seed=5)
    for tensor in module.parameters():
        tensor.data *= 3
    save_weights(module, tmp_path / "weights.safetensors")
    stranger = replace(candidate, weights=tmp_path / "weights.safetensors")
    says = r"range of '\w+', .* to .*, goes beyond what the ONNX graph shows, .*: the two are not the same network"
    with pytest.raises(StageError, match=says):
        quantize(stranger, QuantizeConfig(engine="neural_compressor", samples=32), context(tmp_path / "q", digits))


def test_a_graph_of_other_names_is_noticed(exported, digits, tmp_path):
    candidate = exported["projection"]
    model = graph.read(candidate.onnx)
    graph.rename(model, {node.output[0]: f"v{i}" for i, node in enumerate(model.graph.node[:-1])})
    graph.write(model, tmp_path / "renamed.onnx")
    says = r"only 1 of neural-compressor's 9 values are in the ONNX graph \(not: batch_norm_5, .*\): is it an export"
    with pytest.raises(StageError, match=says):
        quantize(
            replace(candidate, onnx=tmp_path / "renamed.onnx"),
            QuantizeConfig(engine="neural_compressor", samples=32),
            context(tmp_path / "q", digits),
        )


def test_it_has_no_percentiles():
    with pytest.raises(ValidationError, match="no percentile calibration: choose minmax or entropy"):
        QuantizeConfig(engine="neural_compressor", calibration="percentile")
    with pytest.raises(StageError, match="neural-compressor has no 'percentile' calibration: choose minmax or entropy"):
        activation_ranges(nn.Identity(), Signature((1,), 1), [], "percentile")


def test_it_may_not_be_installed(exported, digits, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "stages.vendors.neural_compressor")
    monkeypatch.delattr("stages.vendors.neural_compressor")
    monkeypatch.setitem(sys.modules, "neural_compressor", None)
    says = (
        r"engine neural_compressor needs neural_compressor.*, which is not installed: pip install 'attar\[compress\]'"
    )
    with pytest.raises(StageError, match=says):
        quantize(exported["projection"], QuantizeConfig(engine="neural_compressor"), context(tmp_path, digits))


def test_its_failures_are_stage_errors(exported, digits):
    candidate = exported["seed_cnn"]
    with pytest.raises(StageError, match=r"neural-compressor failed: .*Engine onnxruntime needs no torch network"):
        activation_ranges(build(candidate), candidate.signature, [np.zeros((4, 3, 8, 8), np.float32)])
