"""What the probe tells about operators: read from onnxruntime's own profiler, in real sessions."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from probing import METER, RUNTIME, run, save, value, weights

from targets.probe import operators
from targets.probe.session import Model

BY = {"pads": [1, 1, 1, 1]}


@pytest.fixture
def folder(tmp_path):
    """`a`: conv, relu, exp, conv, pooling, a layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], name="first", **BY),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Exp", ["r"], ["e"], name="odd"),
        helper.make_node("Conv", ["e", "w1"], ["d"], name="second", **BY),
        helper.make_node("GlobalAveragePool", ["d"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w2"], ["y"], name="layer"),
    ]
    initializers = [weights("w0", 32, 3, 3, 3), weights("w1", 32, 32, 3, 3), weights("w2", 32, 5)]
    save(tmp_path / "a.onnx", nodes, [value("x", ["n", 3, 16, 16])], [value("y", ["n", 5])], initializers)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32))
    return tmp_path


def test_nodes_in_execution_order_with_what_really_ran(folder):
    code, answer = run(folder, ["operators"])
    assert code == 0, answer
    found = answer["models"]["a"]["operators"]
    assert found["runs"] == len(found["run_us"]) >= 5
    assert all(len(node["us"]) == found["runs"] for node in found["nodes"])
    assert {node["provider"] for node in found["nodes"]} == {"CPUExecutionProvider"}
    kinds = [node["op_type"] for node in found["nodes"] if not node["op_type"].startswith("Reorder")]
    assert kinds == ["Conv", "Exp", "Conv", "GlobalAveragePool", "Flatten", "Gemm"], "the relu went into the conv"
    odd = next(node for node in found["nodes"] if node["name"] == "odd")
    assert (odd["inputs"], odd["outputs"]) == ([["float", [1, 32, 16, 16]]], [["float", [1, 32, 16, 16]]])
    sums = np.sum([node["us"] for node in found["nodes"]], axis=0)
    assert (sums <= found["run_us"]).all()
    assert sums.sum() > 0
    left = {path.name for path in folder.iterdir()}
    assert left == {"a.onnx", "x.npy", "job.json", "result.json", "probe.pyz"}, "the profiler's files are gone"


def test_a_forced_fallback_shows_in_every_node(folder):
    """onnxruntime lists Azure's provider and takes it, and it takes no node."""
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has no AzureExecutionProvider")
    code, answer = run(folder, ["operators", "latency"], runtime={**RUNTIME, "provider": "AzureExecutionProvider"})
    assert code == 0, answer
    got = answer["models"]["a"]
    assert answer["environment"]["providers"] == ["AzureExecutionProvider", "CPUExecutionProvider"]
    assert {node["provider"] for node in got["operators"]["nodes"]} == {"CPUExecutionProvider"}
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        assert got["assignment"] == {"CPUExecutionProvider": 7}


def test_fallback_providers_that_are_not_here_are_left_out(folder):
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has no AzureExecutionProvider")
    runtime = {**RUNTIME, "fallback": ["MoonExecutionProvider", "AzureExecutionProvider"]}
    code, answer = run(folder, ["session"], runtime=runtime)
    assert code == 0, answer
    assert answer["environment"]["providers"] == ["CPUExecutionProvider", "AzureExecutionProvider"]


def test_an_onnxruntime_that_does_not_tell_the_assignment(folder):
    before = "import onnxruntime as ort\n"
    before += "if hasattr(ort.InferenceSession, 'get_provider_graph_assignment_info'):\n"
    before += "    from onnxruntime.capi.onnxruntime_inference_collection import Session\n"
    before += "    for kind in (Session, ort.InferenceSession):\n"
    before += "        if 'get_provider_graph_assignment_info' in vars(kind):\n"
    before += "            del kind.get_provider_graph_assignment_info"
    code, answer = run(folder, ["operators"], before=before)
    assert code == 0, answer
    assert answer["models"]["a"]["assignment"] is None


def test_the_precision_that_ran_is_seen(tmp_path):
    """The same int8 product, once with a Q/DQ pair that fuses and once with one that does not reach it."""
    scale, zero = helper.make_tensor("s", TensorProto.FLOAT, [], [0.05]), helper.make_tensor("z", 2, [], [128])
    w = numpy_helper.from_array(np.ones((8, 8), np.int8), "w")
    ws, wz = helper.make_tensor("ws", TensorProto.FLOAT, [], [0.1]), helper.make_tensor("wz", 3, [], [0])
    head = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], name="dqw"),
    ]
    tail = [
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"], name="mq"),
        helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["y"], name="mdq"),
    ]
    fused = [*head, helper.make_node("MatMul", ["d", "dw"], ["m"], name="product"), *tail]
    apart = [
        *head,
        helper.make_node("Sin", ["d"], ["sd"]),
        helper.make_node("MatMul", ["sd", "dw"], ["m"], name="product"),
        *tail,
    ]
    for name, nodes in (("fused", fused), ("apart", apart)):
        save(
            tmp_path / f"{name}.onnx",
            nodes,
            [value("x", ["n", 8])],
            [value("y", ["n", 8])],
            [scale, zero, w, ws, wz],
        )
    np.save(tmp_path / "x.npy", np.ones((3, 8), np.float32))
    code, answer = run(tmp_path, ["operators"], ["fused", "apart"])
    assert code == 0, answer
    ran = {
        name: next(n for n in got["operators"]["nodes"] if n["name"] == "product")
        for name, got in answer["models"].items()
    }
    assert (ran["fused"]["op_type"], ran["fused"]["inputs"][0][0]) == ("QLinearMatMul", "uint8")
    assert (ran["apart"]["op_type"], ran["apart"]["inputs"][0][0]) == ("MatMul", "float")


def test_branches_and_loops_are_counted_once(tmp_path):
    """The input's sign chooses the branch; the loop's body runs 50 times a run, and its time is not the loop's own."""
    then = helper.make_graph([helper.make_node("Add", ["x", "x"], ["t"], name="up")], "t", [], [value("t", None)])
    other = helper.make_graph([helper.make_node("Sub", ["x", "x"], ["e"], name="down")], "e", [], [value("e", None)])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"], name="same"),
            helper.make_node("MatMul", ["state", "w"], ["next"], name="step"),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state", None)],
        [value("on", [], TensorProto.BOOL), value("next", None)],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0, name="sum"),
        helper.make_node("Greater", ["total", "zero"], ["positive"], name="sign"),
        helper.make_node("If", ["positive"], ["b"], then_branch=then, else_branch=other, name="branch"),
        helper.make_node("Loop", ["times", "yes", "b"], ["y"], body=body, name="loop"),
    ]
    initializers = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0]),
        helper.make_tensor("times", TensorProto.INT64, [], [50]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        weights("w", 64, 64),
    ]
    save(tmp_path / "a.onnx", nodes, [value("x", ["n", 64])], [value("y", None)], initializers)
    x = np.ones((2, 64), np.float32)
    x[1] = -1  # examples in turns: every second run takes the other branch
    np.save(tmp_path / "x.npy", x)
    code, answer = run(tmp_path, ["operators"])
    assert code == 0, answer
    found = answer["models"]["a"]["operators"]
    by_name = {node["name"]: node for node in found["nodes"]}
    assert [n["name"] for n in found["nodes"]][:3] == ["sum", "sign", "branch"]
    assert sorted(by_name) == ["branch", "down", "loop", "same", "sign", "step", "sum", "up"]
    sums = np.sum([node["us"] for node in found["nodes"]], axis=0)
    assert (sums <= found["run_us"]).all(), "what runs within another node is not counted twice"
    up, down = np.array(by_name["up"]["us"]), np.array(by_name["down"]["us"])
    assert not (up * down).any(), "one branch a run"
    assert by_name["up"]["ran"] + by_name["down"]["ran"] == found["runs"] == by_name["loop"]["ran"]
    assert by_name["step"]["outputs"] == [["float", [1, 64]]]


def event(cat, name, ts, dur, **args):
    return json.dumps({"cat": cat, "pid": 1, "tid": 1, "dur": dur, "ts": ts, "ph": "X", "name": name, "args": args})


def test_an_inner_nodes_time_is_taken_off_the_outer_one(tmp_path):
    trace = [
        event("Session", "session_initialization", 0, 9),
        event("Node", "before_kernel_time", 10, 5, op_name="Add", node_index="0"),
        event("Node", "in_kernel_time", 22, 6, op_name="Exp", node_index="0"),
        event("Node", "in_kernel_time", 29, 7, op_name="Exp", node_index="0"),
        event("Session", "SequentialExecutor::Execute", 21, 16),
        event("Node", "loop_kernel_time", 20, 20, op_name="Loop", node_index="1"),
        event("Session", "model_run", 9, 33),
        event("Node", "before_kernel_time", 50, 5, op_name="Add", node_index="0"),
    ]
    (tmp_path / "t.json").write_text("[\n" + ",\n".join(trace) + "\n]")
    found = operators.summary(operators._runs(tmp_path / "t.json"))
    assert (found["runs"], found["run_us"]) == (1, [33]), "the second run has no end, and is not counted"
    assert [(n["name"], n["us"]) for n in found["nodes"]] == [("before", [5]), ("loop", [6]), ("in", [13])]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("conv1", "conv1"),
        ("conv1_nchwc", "conv1"),
        ("conv1_nchwc_token_12", "conv1"),
        ("ReorderInput_token_6", "ReorderInput"),
        ("/l/MatMul/MatMulAddFusion", "/l/MatMul"),
        ("x_DequantizeLinear/duplicated_token_1", "x_DequantizeLinear"),
        ("a_token_b", "a_token_b"),
        ("", ""),
    ],
)
def test_names_are_those_of_the_file(name, source):
    assert operators.source_name(name) == source


def test_the_trace_stays_small(folder, monkeypatch):
    """About 8 events a run and room for 60: six runs, not a hundred."""
    model = Model("a", folder / "a.onnx", RUNTIME, {"x": folder / "x.npy"}, False)
    monkeypatch.setattr(operators, "MOST_EVENTS", 60)
    found, _ = operators.operators(model, RUNTIME, METER, folder)
    assert 3 <= found["runs"] <= 7
    assert not list(folder.glob("trace*"))


def test_a_model_that_fails_under_the_profiler_leaves_no_file(folder):
    x = np.zeros((2, 3, 16, 16), np.float32)
    np.save(folder / "x.npy", x)
    before = "import onnxruntime as ort\nwhole = ort.InferenceSession.run\n"
    before += "def run(self, *a):\n    raise RuntimeError('no')\nort.InferenceSession.run = run"
    code, answer = run(folder, ["operators"], before=before)
    assert code == 1
    assert "could not profile model 'a': no" in answer["error"]
    assert not list(folder.glob("trace*"))
