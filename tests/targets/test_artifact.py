import hashlib
import os
import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets import artifact
from targets.artifact import Value, load
from targets.errors import InputError
from targets.testing import tiny_onnx


@pytest.fixture
def net(tmp_path):
    return tiny_onnx(tmp_path / "a.onnx")


def refused(path, what):
    return pytest.raises(InputError, match=rf"^{path}: {what}")


def test_a_sound_file(net):
    found = load(net)
    assert found.sha256 == hashlib.sha256(net.read_bytes()).hexdigest()
    assert (found.path, found.size_bytes, found.opset, found.ir_version) == (net, net.stat().st_size, 20, 10)
    assert found.inputs == (Value("x", ("batch", 3, 4, 4), "float32"),)
    assert found.outputs == (Value("y", ("batch", 10), "float32"),)


def test_a_fixed_batch_is_fine(tmp_path):
    assert load(tiny_onnx(tmp_path / "a.onnx", batch=1)).inputs[0].shape == (1, 3, 4, 4)


def test_a_symbolic_link_is_refused(net, tmp_path):
    (tmp_path / "b.onnx").symlink_to(net)
    with refused(tmp_path / "b.onnx", r"is a symbolic link, .*\n   help: copy the file itself"):
        load(tmp_path / "b.onnx")


def test_a_hard_link_is_refused(net, tmp_path):
    os.link(net, tmp_path / "b.onnx")
    with refused(net, r"has 2 names \(hard links\), .*\n   help: copy the file itself"):
        load(net)


def test_a_missing_file_a_folder_a_pipe(tmp_path):
    with refused(tmp_path / "b.onnx", "no such file"):
        load(tmp_path / "b.onnx")
    with refused(tmp_path, "cannot be read: Is a directory"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with refused(tmp_path / "pipe", "is no regular file"):
        load(tmp_path / "pipe")


def test_absurd_sizes(tmp_path, net, monkeypatch):
    (tmp_path / "b.onnx").write_bytes(b"")
    with refused(tmp_path / "b.onnx", "is empty"):
        load(tmp_path / "b.onnx")
    with (tmp_path / "c.onnx").open("wb") as file:
        file.truncate(artifact.MAX_BYTES + 1)  # a hole: takes no room
    with refused(tmp_path / "c.onnx", "has 2.1 GB"):
        load(tmp_path / "c.onnx")


@pytest.mark.parametrize(
    ("content", "help"),
    [
        (b"not onnx at all", "the file is damaged, or something else under this name"),
        (b"\x00" * 100, "the file is damaged"),
        (b"PK\x03\x04" + b"\x00" * 50, "this looks like a torch checkpoint or a pickle: export it to ONNX first"),
        (pickle.dumps({"a": 1}), "this looks like a torch checkpoint or a pickle"),
    ],
    ids=["text", "zeros", "zip", "pickle"],
)
def test_what_is_no_onnx(tmp_path, content, help):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with refused(path, rf"is no valid ONNX model: .*\n   help: {help}"):
        load(path)


def test_a_truncated_file(net):
    net.write_bytes(net.read_bytes()[:-100])
    with refused(net, "is no valid ONNX model"):
        load(net)


def test_an_unknown_operator(net):
    model = onnx.load(net)
    model.graph.node[2].op_type = "Rleu"
    onnx.save(model, net)
    with refused(net, "is no valid ONNX model: No Op registered for Rleu.*\n   help: correct the name"):
        load(net)


def test_an_ir_version_of_the_future(net):
    with refused(
        _with(net, lambda m: setattr(m, "ir_version", 99)), r".* ir_version 99 .*\n   help: export it with an older"
    ):
        load(net)


def test_a_negative_size_is_an_open_one(net):
    def change(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1

    assert load(_with(net, change)).inputs == (Value("x", ("?", 3, 4, 4), "float32"),)


def test_an_element_type_of_the_future(net):
    def change(model):
        model.graph.input[0].type.tensor_type.elem_type = 99

    with refused(_with(net, change), "has 'x' of the element type 99, which .* onnx does not know\n   help: export it"):
        load(net, batched=False)


def test_what_is_no_number_is_called_by_its_name(tmp_path):
    text = helper.make_tensor_value_info("t", TensorProto.STRING, ["n"])
    parts = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n"])
    nodes = [helper.make_node("Identity", ["t"], ["u"]), helper.make_node("Identity", ["s"], ["v"])]
    outputs = [helper.make_tensor_value_info("u", TensorProto.STRING, ["n"])]
    graph = helper.make_graph(nodes, "g", [text, parts], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    assert [value.dtype for value in load(tmp_path / "a.onnx", batched=False).inputs] == ["string", "sequence"]


def test_weights_outside_the_file(net, tmp_path):
    path = tmp_path / "b.onnx"
    onnx.save(onnx.load(net), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with refused(path, r"keeps weights outside the file: weights\.bin\n   help: save it as one file"):
        load(path)


def _with(net, change):
    model = onnx.load(net)
    change(model)
    net.write_bytes(model.SerializeToString())
    return net


def _outside_tensor():
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "c")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


@pytest.mark.parametrize("where", ["attribute", "subgraph", "function"])
def test_weights_outside_the_file_are_found_wherever_they_hide(net, where):
    constant = helper.make_node("Constant", [], ["c"], value=_outside_tensor())

    def change(model):
        if where == "attribute":
            model.graph.node.append(constant)
        elif where == "subgraph":
            body = helper.make_graph([constant], "body", [], [])
            model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body))
        else:
            model.functions.append(helper.make_function("mine", "F", [], ["c"], [constant], model.opset_import))

    with refused(_with(net, change), r"keeps weights outside the file: \.\./\.\./etc/passwd"):
        load(net)


def test_a_graph_without_batch_axis(net):
    def change(model):
        del model.graph.output[0].type.tensor_type.shape.dim[:]

    with refused(_with(net, change), r"output 'y' of shape \(\) has no batch axis\n   help: the first axis"):
        load(net)


def test_a_graph_without_inputs(net):
    def change(model):
        del model.graph.node[:]
        del model.graph.input[:]
        model.graph.node.append(helper.make_node("Identity", ["w2"], ["y"]))

    with refused(_with(net, change), "has 0 inputs and 1 outputs"):
        load(net)


def test_a_graph_that_branches_says_so(net):
    def change(model):
        y, h = model.graph.output[0], model.graph.node[-1].input[0]
        inner = helper.make_graph([model.graph.node.pop()], "then", [], [y])
        other = helper.make_graph([helper.make_node("MatMul", [h, "w2"], ["y"])], "else", [], [y])
        model.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
        y = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 10])
        model.graph.node.append(helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=other))
        del model.graph.output[:]
        model.graph.output.append(y)

    assert not load(net).branches
    assert load(_with(net, change)).branches


def test_external_weights_in_a_branch_are_refused(net):
    def change(model):
        tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="elsewhere.bin")
        inner = helper.make_graph([helper.make_node("Identity", ["far"], ["o"])], "then", [], [], [tensor])
        model.graph.node.append(helper.make_node("If", ["x"], ["q"], then_branch=inner, else_branch=inner))

    with refused(_with(net, change), r"keeps weights outside the file: elsewhere.bin"):
        load(net)


def test_weights_listed_as_inputs_are_no_inputs(net):
    """As IR version 3 wants it, and some exporters still do."""

    def change(model):
        model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [48, 32]))

    assert [value.name for value in load(_with(net, change)).inputs] == ["x"]
