"""Exported files against torch: numbers, names, bytes, and what is said when they differ."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from stages import graph, parity
from stages.base import Signature
from stages.export import export, to_onnx, trace
from stages.network import build
from stages.settings import ExportConfig
from stages.testing import context, tiny_splits, tiny_teacher
from targets.errors import StageError
from targets.target import Target

ROOT = Path(__file__).parents[2]
DATA = tiny_splits()
NETS = {
    "cnn": ("stages.testing:tiny_cnn", {}),
    "concat": ("stages.testing:tiny_concat", {}),
    "depthwise": ("stages.testing:tiny_mobile", {}),
    "projection": ("stages.zoo:resnet", {"depth": 8, "classes": 4, "in_channels": 1, "width": 8}),
    "padded": ("stages.zoo:resnet", {"depth": 8, "classes": 4, "in_channels": 1, "width": 8, "shortcut": "padded"}),
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {name: tiny_teacher(folder / name, DATA, source, epochs=1, **args) for name, (source, args) in NETS.items()}


@pytest.fixture
def teacher(tmp_path):
    """A teacher by the function's name in this file, untrained but for a moment."""
    numbers = count()

    def make(name, data=DATA, **args):
        return tiny_teacher(tmp_path / f"{name}{next(numbers)}", data, f"{__name__}:{name}", epochs=1, **args)

    return make


def messages(message):
    """Every protobuf message inside a message."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from messages(inner)


@pytest.fixture(scope="module")
def exported(teachers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {name: export(teacher, ExportConfig(), context(folder / name, DATA)) for name, teacher in teachers.items()}


@pytest.mark.parametrize("name", NETS)
def test_the_file_computes_what_torch_computes(teachers, exported, name):
    result = exported[name]
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    module = build(result)
    for batch in (1, 5, 32):
        x = DATA.test.inputs(slice(0, batch))
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run(["logits"], {"input": x})[0], expected, atol=1e-4 * abs(expected).max())
    assert sorted(path.name for path in result.onnx.parent.iterdir()) == ["model.onnx", result.weights.name]
    assert result.weights.read_bytes() == teachers[name].weights.read_bytes()
    metrics = result.steps[-1].metrics
    assert metrics["opset"] == 20
    assert 0 <= metrics["parity_max_difference"] < 1e-4
    assert metrics["size_mb"] == pytest.approx(result.onnx.stat().st_size / 1e6)


@pytest.mark.parametrize("name", NETS)
def test_the_batch_is_dynamic_everywhere(exported, name):
    model = onnx.load(exported[name].onnx)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch", value.name
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


AGAIN = """
import sys
from pathlib import Path
from stages.base import Candidate
from stages.export import export
from stages.settings import ExportConfig
from stages.testing import context, tiny_splits
export(Candidate.load(Path(sys.argv[1])), ExportConfig(), context(Path.cwd(), tiny_splits()))
"""


def test_another_process_in_another_folder_writes_the_same_bytes(teachers, exported, tmp_path):
    weights = teachers["padded"].weights
    teachers["padded"].save(weights.parent)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", AGAIN, weights.parent]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == exported["padded"].onnx.read_bytes()


def test_values_are_named_as_in_torch_and_nodes_after_their_modules(exported):
    model = onnx.load(exported["projection"].onnx)
    named = {node.name: (node.op_type, node.output[0]) for node in model.graph.node}
    assert len(named) == len(model.graph.node)
    assert named["stem.0"] == ("Conv", "batch_norm")
    assert named["stages.1.0.shortcut.0"] == ("Conv", "batch_norm_5")
    assert named["add_1"] == ("Add", "add_1")
    assert named["head"] == ("Gemm", "logits")
    assert "BatchNormalization" not in {op for op, _ in named.values()}


@pytest.mark.parametrize("name", NETS)
def test_nothing_of_this_machine_is_in_the_file(exported, name):
    path = exported[name].onnx
    assert b".py" not in path.read_bytes()
    assert str(path.parent).encode() not in path.read_bytes()
    for message in messages(onnx.load(path)):
        assert not getattr(message, "doc_string", "")
        assert not len(getattr(message, "metadata_props", ()))


def test_nothing_is_printed_or_logged(teachers, tmp_path, capfd, caplog):
    with caplog.at_level(logging.DEBUG, "onnxscript.version_converter"):
        export(teachers["cnn"], ExportConfig(), context(tmp_path, DATA, target=Target(name="old", opset=18)))
        says = r"could not write the network at opset 13: .* Choose a target that takes opset 18"
        with pytest.raises(StageError, match=says):
            export(
                teachers["cnn"], ExportConfig(), context(tmp_path / "old", DATA, target=Target(name="old", opset=13))
            )
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@pytest.mark.parametrize(
    ("asked", "target", "opset", "ir_version"),
    [
        (None, Target(name="t", opset=18, ir_version=8), 18, 8),
        (19, Target(name="t", ir_version=9), 19, 9),
        (None, Target(name="t", opset=17), 17, 10),  # below what the exporter writes: converted
    ],
)
def test_opset_and_ir_version_stay_below_the_targets(teachers, tmp_path, asked, target, opset, ir_version):
    made = export(teachers["concat"], ExportConfig(opset=asked), context(tmp_path, DATA, target=target))
    model = onnx.load(made.onnx)
    assert (graph.opset_of(model), model.ir_version) == (opset, ir_version)
    assert made.steps[-1].metrics["opset"] == opset


def test_an_opset_above_the_targets(teachers, tmp_path):
    says = r"asked for opset 21 and target board takes at most 19: leave export\.opset out"
    with pytest.raises(StageError, match=says):
        export(
            teachers["cnn"],
            ExportConfig(opset=21),
            context(tmp_path, DATA, target=Target(name="board", opset=19)),
        )


@pytest.fixture(scope="module")
def captured(teachers):
    """(program, signature, its ONNX graph) of the network with projections."""
    candidate = teachers["projection"]
    program = trace(build(candidate), DATA.validation.inputs(slice(0, 2)))
    return program, candidate.signature, to_onnx(program, candidate.signature, 20)


@pytest.mark.parametrize(
    ("tensor", "node"),
    [
        ("stages.1.0.conv1.weight", r"node 'stages\.1\.0\.conv1' \(Conv\), value 'batch_norm_3'"),
        ("stages.2.0.shortcut.0.weight", r"node 'stages\.2\.0\.shortcut\.0' \(Conv\), value 'batch_norm_8'"),
        ("head.bias", r"node 'head' \(Gemm\), value 'logits'"),
    ],
)
def test_the_first_diverging_node_is_named_with_both_values(captured, tmp_path, tensor, node):
    program, signature, model = captured
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    (spoiled,) = [t for t in broken.graph.initializer if t.name == tensor]
    numbers = numpy_helper.to_array(spoiled).copy()
    numbers[1] += 0.5
    spoiled.CopyFrom(numpy_helper.from_array(numbers, tensor))
    x = DATA.validation.inputs(slice(0, 4))
    found = parity.first_divergence(program, signature, broken, x, 1e-4)
    assert found is not None
    assert found.index[1] == 1
    assert abs(found.torch - found.onnx) > 1e-3
    graph.write(broken, tmp_path / "broken.onnx")
    says = rf"differs from torch by .*first at {node}: torch gives -?[\d.e-]+ and ONNX -?[\d.e-]+ at \[\d, 1"
    with pytest.raises(StageError, match=says):
        parity.prove(program, signature, tmp_path / "broken.onnx", [x], 1e-4)


def test_a_wrong_shape_inside_is_a_divergence(captured):
    program, signature, model = captured
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    (node,) = [n for n in broken.graph.node if n.name == "stages.0.0.conv2"]
    for attribute in node.attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [0, 0, 0, 0]
    del broken.graph.value_info[:]
    del broken.graph.node[list(broken.graph.node).index(node) + 1 :]  # what follows cannot take the shape
    del broken.graph.output[:]
    broken.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    found = parity.first_divergence(program, signature, broken, DATA.validation.inputs(slice(0, 2)), 1e-4)
    assert str(found) == (
        "node 'stages.0.0.conv2' (Conv), value 'batch_norm_2': torch gives shape (2, 8, 8, 8) and ONNX (2, 8, 6, 6)"
    )


def test_an_equal_graph_has_no_divergence(captured):
    program, signature, model = captured
    assert parity.first_divergence(program, signature, model, DATA.validation.inputs(slice(0, 4)), 1e-4) is None


def test_a_difference_above_the_tolerance_stops_the_stage(teachers, tmp_path):
    with pytest.raises(StageError, match=r"allowed is 1e-12 of the largest output .*; first at node"):
        export(teachers["projection"], ExportConfig(tolerance=1e-12), context(tmp_path, DATA))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x if x.sum() > 0 else -x)


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        return self.head(x.reshape(len(x), 64)) if len(x) != 2 else self.head(x.reshape(2, 64))


class Unwritable(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        return self.head(x.flatten(1)) + torch.linalg.eigvals(x[:, 0]).real[:, :1]


class Infinite(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        return self.head(x.flatten(1)) * self.scale


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Branching, r"test_export.py:\d+: `return .* if x.sum.*`: torch.export could .*: .*must not branch on values"),
        (
            FixedBatch,
            r"dynamic batch: the code makes the length .* a constant. .*nor fix the length .*, not len\(x\)\)",
        ),
        (Unwritable, "torch.onnx could not write the network at opset 20: "),
    ],
)
def test_a_network_that_cannot_be_exported(teacher, tmp_path, network, says, capfd):
    with pytest.raises(StageError, match=says) as caught:
        export(teacher(network.__name__), ExportConfig(), context(tmp_path, DATA))
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []
    assert capfd.readouterr().err == ""  # torch prints the graph that it had captured


def test_outputs_that_are_not_finite(teacher, tmp_path):
    candidate = teacher("Infinite")
    spoiled = replace(candidate, origin=replace(candidate.origin, args={"scale": float("inf")}))
    with pytest.raises(StageError, match="torch itself gives NaN or infinite outputs on validation examples"):
        export(spoiled, ExportConfig(), context(tmp_path, DATA))


def test_no_validation_examples(teachers, tmp_path):
    none = replace(DATA, validation=replace(DATA.validation, raw=DATA.test.raw[:0], labels=DATA.test.labels[:0]))
    with pytest.raises(StageError, match="compares with torch on validation examples, and there are none"):
        export(teachers["cnn"], ExportConfig(), context(tmp_path, none))


def test_one_validation_example_is_enough_and_the_border_has_the_signatures_names(teachers, tmp_path):
    one = replace(DATA, validation=replace(DATA.validation, raw=DATA.test.raw[:1], labels=DATA.test.labels[:1]))
    candidate = replace(teachers["cnn"], signature=Signature((1, 8, 8), 4, "pixels", "scores"))
    model = onnx.load(export(candidate, ExportConfig(), context(tmp_path, one)).onnx)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["pixels", "scores"]
