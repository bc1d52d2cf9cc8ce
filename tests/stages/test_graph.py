"""ONNX graphs by hand, small enough to see what must come out."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages import graph
from stages.testing import tiny_splits
from targets.errors import InputError, StageError

DATA = tiny_splits()  # (1, 8, 8) inputs, 4 classes
ROOT = Path(__file__).parents[2]


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def linear(given=("n", 1, 8, 8), made=("n", 4), kind=TensorProto.FLOAT, inner=(0, -1), extra=()):
    """Reshape and Gemm: logits of 64 pixels.

    Args:
        inner: the target shape of the Reshape; 0 copies the batch.
    """
    random = np.random.default_rng(0)
    constants = {
        "shape": np.array(inner, np.int64),
        "head.weight": random.normal(size=(4, 64)).astype(np.float32),
        "head.bias": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["x32"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["x32", "shape"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["y"], "head", transB=1),
    ]
    if kind == TensorProto.FLOAT:
        del nodes[0]
        nodes[0].input[0] = "x"
    body = helper.make_graph(
        nodes,
        "linear",
        [info("x", given, kind), *extra],
        [info("y", made)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def come_in(tmp_path):
    """Brings a model (or bytes) in as a user's file."""

    def call(model, data=DATA):
        path = tmp_path / "mine.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        return graph.from_onnx(path, data, out)

    return call


def test_a_users_file_becomes_a_candidate(come_in, tmp_path):
    made = come_in(linear())
    assert made.form == "onnx"
    assert made.onnx == tmp_path / "out" / "model.onnx"
    assert made.onnx.read_bytes() == (tmp_path / "mine.onnx").read_bytes()
    assert (made.signature.input_name, made.signature.output_name) == ("x", "y")
    assert (made.signature.input_shape, made.signature.outputs) == ((1, 8, 8), 4)
    assert made.weights is None
    assert made.origin.source == "mine.onnx"  # where it lay is not part of what it is
    made.save(tmp_path / "out")
    assert type(made).load(tmp_path / "out") == made


def test_axes_may_be_dynamic_and_weights_may_be_listed_as_inputs(come_in):
    model = linear(given=("n", 1, "height", "width"), made=(None, None))
    model.graph.input.append(info("head.bias", (4,)))
    assert come_in(model).signature.input_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (linear(given=(1, 1, 8, 8), made=(1, 4)), r"input 'x' fixes the batch at 1\n   help: export it with a dynamic"),
        (
            linear(inner=(1, -1)),
            r"a batch of 3 fails: onnxruntime failed on inputs \(3, 1, 8, 8\): .*\n   help: export it",
        ),
        (linear(given=("n", 1, 4, 16)), r"input 'x' takes \(n, 1, 4, 16\) and the data has \(batch, 1, 8, 8\)"),
        (linear(given=("n", 64)), r"input 'x' takes \(n, 64\) and the data has \(batch, 1, 8, 8\)\n   help: set data"),
        (linear(extra=[info("mask", ("n",))]), r"has 2 inputs and must have one: x, mask\n   help: cut the graph"),
        (linear(kind=TensorProto.UINT8), "input 'x' must be float32 and is uint8"),
        (b"\x80\x02 a pickle", r"mine\.onnx: is no valid ONNX model"),
        (b"", r"mine\.onnx: is empty"),
    ],
)
def test_a_file_that_does_not_fit(come_in, tmp_path, model, says):
    with pytest.raises(InputError, match=says):
        come_in(model)


def test_another_number_of_classes(come_in):
    fewer = replace(DATA, classes=DATA.classes[:3])
    with pytest.raises(InputError, match=r"output 'y' gives \(n, 4\) and the data has 3 classes"):
        come_in(linear(), fewer)


def test_all_misfits_are_told_at_once(come_in):
    fewer = replace(DATA, classes=DATA.classes[:3])
    with pytest.raises(InputError) as caught:
        come_in(linear(given=(2, 1, 8, 9), made=(2, 4)), fewer)
    assert [fault.what.partition(" ")[0] for fault in caught.value.faults] == ["input", "output", "input", "output"]


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.onnx: no such file"):
        graph.from_onnx(tmp_path / "nowhere.onnx", DATA, tmp_path)


def test_a_users_file_needs_no_torch(tmp_path):
    (tmp_path / "mine.onnx").write_bytes(linear().SerializeToString())
    script = """
import sys
from pathlib import Path
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchao", "neural_compressor"): raise ImportError(name + " is refused")
sys.meta_path.insert(0, Refuse())
import numpy as np
from stages.data import Preprocessing, Split, Splits
from stages.graph import from_onnx
split = Split(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4), Preprocessing())
made = from_onnx(Path("mine.onnx"), Splits(split, split, split, tuple("abcd"), ""), Path("."))
print(made.signature.output_name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("y\n", "")


def test_strip_removes_traces_and_unused_operator_sets():
    model = linear()
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "File /home/someone/net.py, line 3"
    for part in (model, model.graph, model.graph.node[0], model.graph.input[0], model.graph.initializer[0]):
        part.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/someone/net.py, line 3")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.value_info.append(info("head.bias", (4,)))
    graph.strip(model)
    assert model == linear()


def test_rename_swaps_names_but_takes_none():
    model = linear()
    graph.rename(model, {"x": "input", "flat": "head.bias", "nowhere": "y", "head.weight": "flat2"})
    assert [list(node.input) for node in model.graph.node] == [["input", "shape"], ["flat", "flat2", "head.bias"]]
    graph.rename(model, {"flat": "flat2", "flat2": "flat"})
    assert [list(node.input) for node in model.graph.node] == [["input", "shape"], ["flat2", "flat", "head.bias"]]
    graph.rename(model, {"flat": "shape", "flat2": "flat"})
    assert [list(node.input) for node in model.graph.node] == [["input", "shape"], ["flat2", "flat", "head.bias"]]
    onnx.checker.check_model(model, full_check=True)


def test_nodes_that_share_a_weight_have_two_names():
    model = linear()
    again = helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["z"], "", transB=1)
    model.graph.node.append(again)
    graph.name_nodes(model)
    assert [node.name for node in model.graph.node] == ["flat", "head", "z"]


def test_watched_gives_out_every_float_value():
    model = linear()
    seen, order = graph.watched(model)
    assert order == ["flat", "y"]
    runner = graph.session(seen)
    values = runner.run(order, {"x": np.ones((2, 1, 8, 8), np.float32)})
    assert [value.shape for value in values] == [(2, 64), (2, 4)]
    assert [value.name for value in model.graph.output] == ["y"]


def quantized(*, output=True):
    """x -> Q -> DQ -> Relu [-> Q -> DQ] -> y"""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Relu", ["d"], ["r" if output else "y"]),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "scale", "zero"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(0.1).reshape(()), "scale"),
        numpy_helper.from_array(np.uint8(128).reshape(()), "zero"),
    ]
    body = helper.make_graph(
        nodes if output else nodes[:3], "q", [info("x", ("n", 4))], [info("y", ("n", 4))], constants
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_node_is_int8_only_between_both_ends():
    assert graph.tally(quantized()) == graph.Tally(1, 0, {})
    assert graph.tally(quantized(output=False)) == graph.Tally(0, 1, {"Relu": 1})
    assert graph.tally(linear()) == graph.Tally(0, 2, {"Gemm": 1, "Reshape": 1})


def test_int8_is_recognized():
    assert graph.int8_form(quantized()) == "QuantizeLinear"
    assert graph.int8_form(linear()) is None


def test_a_broken_graph_is_not_written(tmp_path):
    model = linear()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(StageError, match="onnx's checker refuses the graph: Nodes in a graph must be topologically"):
        graph.write(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_onnxruntimes_refusals_are_stage_errors(capfd):
    model = linear()
    model.graph.node[1].domain = "unknown"
    model.opset_import.append(helper.make_opsetid("unknown", 1))
    with pytest.raises(StageError, match=r"onnxruntime [\d.]+ refuses the model: .*unknown:Gemm"):
        graph.session(model)
    with pytest.raises(StageError, match=r"onnxruntime failed on inputs \(2, 3\)"):
        graph.predict(graph.session(linear()), np.zeros((2, 3), np.float32))
    assert capfd.readouterr() == ("", "")
