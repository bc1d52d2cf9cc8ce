"""Operators joined with the file's nodes: names, shapes, numbers, and the gates. Facts of real runs where it can be."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from profiled_graphs import answer, convolutions, executed, node, quantized, two_inputs, weights, write

from targets.operator_rows import operators, profiler_us
from targets.operators import findings, gates, node_counts
from targets.source_graph import family, read

CPU = "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("op_type", "kind"),
    [
        *[(op, "Conv") for op in ("Conv", "QLinearConv", "FusedConv", "NhwcFusedConv", "ConvInteger")],
        *[(op, "MatMul") for op in ("MatMul", "Gemm", "QGemm", "FusedGemm", "FusedMatMul", "MatMulIntegerToFloat")],
        *[(op, "MatMul") for op in ("QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul")],
        *[("QLinearAdd", "Add"), ("QuantizeLinear", "QuantizeLinear"), ("QLinearConvTranspose", "ConvTranspose")],
    ],
)
def test_families(op_type, kind):
    assert family(op_type) == kind


@pytest.mark.parametrize(
    ("name", "op_type", "found"),
    [
        ("conv", "QLinearConv", "conv"),
        ("conv_token_12", "QLinearConv", "conv"),
        ("fused conv", "FusedConv", "conv"),
        ("r_nchwc", "Conv", "conv"),  # named after the value: the relu's output, which the convolution computes
        ("r", "Conv", "conv"),
        ("head/MatMulAddFusion", "Gemm", "head"),
        ("fused head/MatMulAddFusion", "FusedGemm", "head"),
        ("add", "QLinearAdd", "add"),
        ("add", "Conv", None),
        ("Transpose", "Transpose", None),
        ("", "Conv", None),
    ],
)
def test_the_node_that_an_operator_came_from(tmp_path, name, op_type, found):
    node = read(convolutions(tmp_path / "a.onnx")).trace(name, op_type)
    assert (node.name if node else None) == found


def test_nodes_without_names_are_found_by_their_number(tmp_path):
    nodes = [
        node("Constant", "", "shape", value_ints=[1, 8]),
        node("Reshape", "x shape", "f"),
        node("Relu", "f", "y"),
    ]
    path = write(tmp_path / "a.onnx", nodes, {}, {"x": (TensorProto.FLOAT, [8])}, {"y": (TensorProto.FLOAT, [1, 8])})
    source = read(path)
    assert source.trace("Reshape_0", "Reshape").op_type == "Reshape"  # Constant nodes are not counted
    assert source.trace("Relu_1", "Relu").op_type == "Relu"
    assert source.trace("Relu_0", "Relu") is None
    assert source.trace("Relu_7", "Relu") is None


def test_what_the_file_means_to_be_int8(tmp_path):
    source = read(quantized(tmp_path / "q.onnx"))
    assert [n.name for n in source.quantized] == ["conv", "add", "head"], "not the mean: there is no int8 kernel for it"
    assert not read(convolutions(tmp_path / "f.onnx")).quantized


def test_nodes_in_branches_are_known(tmp_path):
    from onnx import helper

    out = [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["batch", 4])]
    branches = {
        f"{when}_branch": helper.make_graph([node("MatMul", "x w", "o", f"{when}-product")], when, [], out)
        for when in ("then", "else")
    }
    nodes = [node("If", "flag", "y", "if", **branches)]
    inputs = {"flag": (TensorProto.BOOL, []), "x": (TensorProto.FLOAT, ["batch", 8])}
    path = write(tmp_path / "a.onnx", nodes, {"w": weights(8, 4)}, inputs, {"y": (TensorProto.FLOAT, ["batch", 4])})
    assert read(path).trace("else-product", "MatMul").weight == (8, 4)


def rows(path, *nodes, latency_us=None):
    return operators(read(path), answer(*nodes), 0.95, latency_us)


@pytest.mark.parametrize(
    ("nodes", "constants", "ran", "macs", "bytes_"),
    [
        (  # channels last, the weight packed away
            [node("Conv", "x w", "y", "c")],
            {"w": weights(32, 16, 3, 3)},
            ("c", "QLinearConv", ["uint8 1 8 8 16", "float", "uint8", "int8 32"], ["uint8 1 8 8 32"]),
            8 * 8 * 32 * 16 * 9,
            8 * 8 * 16 + 4 + 1 + 32 + 8 * 8 * 32 + 32 * 16 * 9,
        ),
        (  # depthwise
            [node("Conv", "x w", "y", "c", group=16)],
            {"w": weights(16, 1, 3, 3)},
            ("c", "Conv", ["float 2 16 8 8", "float 16 1 3 3"], ["float 2 16 8 8"]),
            2 * 16 * 64 * 9,
            4 * (2 * 2 * 16 * 64 + 16 * 9),
        ),
        (  # a blocked layout, filled up from 12 channels to 16
            [node("Conv", "x w", "y", "c")],
            {"w": weights(12, 3, 3, 3)},
            ("y", "Conv", ["float 1 3 8 8", "float 16 3 3 3"], ["float 1 16 8 8"]),
            64 * 12 * 27,
            4 * (3 * 64 + 16 * 27 + 16 * 64),
        ),
        (
            [node("ConvTranspose", "x w", "y", "c", strides=[2, 2])],
            {"w": weights(12, 8, 2, 2)},
            ("c", "ConvTranspose", ["float 1 12 32 32"], ["float 1 8 64 64"]),
            12 * 1024 * 8 * 4,
            4 * (12 * 1024 + 8 * 4096 + 12 * 8 * 4),
        ),
        (
            [node("Gemm", "x w", "y", "c", transB=1)],
            {"w": weights(10, 64)},
            ("c", "QGemm", ["uint8 5 64", "float", "uint8", "float 10", "int8 10", "int32 10"], ["float 5 10"]),
            5 * 64 * 10,
            5 * 64 + 4 + 1 + 40 + 10 + 40 + 4 * 50 + 640,
        ),
        (  # no constant: K is 64 whichever of the two is turned
            [node("MatMul", "x x", "y", "c")],
            {},
            ("c", "FusedMatMul", ["float 3 7 64", "float 3 9 64"], ["float 3 7 9"]),
            3 * 7 * 9 * 64,
            4 * 3 * (7 * 64 + 9 * 64 + 7 * 9),
        ),
        (  # not traced, weights packed away: the width of the left factor is K
            [node("Relu", "x", "y")],
            {},
            ("fused ", "FusedGemm", ["float16 2 64", "float16 10"], ["float16 2 10"]),
            2 * 64 * 10,
            2 * (128 + 10 + 20),
        ),
        (  # not traced, and nothing tells the kernel's size
            [node("Relu", "x", "y")],
            {},
            ("other", "QLinearConv", ["uint8 1 8 8 16"], ["uint8 1 8 8 32"]),
            None,
            1024 + 2048,
        ),
        ([node("Relu", "x", "y")], {}, ("r", "Relu", ["double 4"], ["double 4"]), None, 64),
    ],
)
def test_macs_and_bytes(tmp_path, nodes, constants, ran, macs, bytes_):
    path = write(tmp_path / "a.onnx", nodes, constants, {"x": (TensorProto.FLOAT, None)}, {"y": (1, None)})
    (op,) = rows(path, executed(*ran))
    assert (op.macs, op.bytes) == (macs, bytes_)
    if macs:
        assert op.gmacs_per_s == pytest.approx(macs / 10e-6 / 1e9)
        assert op.intensity == pytest.approx(macs / bytes_)


@pytest.mark.parametrize(
    ("op_type", "inputs", "outputs", "precision"),
    [
        ("QLinearConv", ["uint8 1 8", "float", "uint8"], ["uint8 1 8"], "int8"),
        ("QLinearConcat", ["float", "uint8", "uint8 1 8", "float", "uint8"], ["uint8 1 8"], "int8"),
        ("MatMulIntegerToFloat", ["uint8 1 8", "float", "float"], ["float 1 8"], "int8"),
        ("MaxPool", ["uint8 1 8"], ["uint8 1 8"], "int8"),
        ("Conv", ["float 1 8", "float 8 8"], ["float 1 8"], "float32"),
        ("Conv", ["float16 1 8"], ["float16 1 8"], "float16"),
        ("QuantizeLinear", ["float 1 8", "float", "uint8"], ["uint8 1 8"], "mixed"),
        ("Cast", ["float 1 8"], ["float16 1 8"], "mixed"),
        ("Where", ["bool 1 8", "float 1 8", "float 1 8"], ["float 1 8"], "float32"),
        ("Gather", ["float 100 8", "int64 4"], ["float 4 8"], "float32"),
        ("Shape", ["float 1 8"], ["int64 2"], "float32"),
        ("Add", ["int64", "int64"], ["int64"], "int64"),
    ],
)
def test_precision(tmp_path, op_type, inputs, outputs, precision):
    (op,) = rows(convolutions(tmp_path / "a.onnx"), executed("n", op_type, inputs, outputs))
    assert op.precision == precision


def test_shares_and_intervals(tmp_path):
    us = [9.0] * 10 + [10.0] * 11 + [30.0] * 10
    first, second = rows(
        convolutions(tmp_path / "a.onnx"),
        executed("a", "Relu", ["float 8"], ["float 8"], us),
        executed("b", "Relu", ["float 8"], ["float 8"], [30.0] * 31),
    )
    assert (first.us, first.us_low, first.us_high) == (10, 9, 30)
    assert (first.share, second.share) == (0.25, 0.75)


def test_the_profilers_own_time_is_taken_off(tmp_path):
    """Three operators of 3, 6 and 12 us take 21 us under the profiler, and a run without it 15."""
    path = convolutions(tmp_path / "a.onnx")
    nodes = [executed(str(us), "Relu", ["float 8"], ["float 8"], [us] * 20) for us in (3.0, 6.0, 12.0)]
    assert profiler_us(answer(*nodes), 15.0) == 2
    assert [op.us for op in rows(path, *nodes, latency_us=15.0)] == [1, 4, 10]
    assert [op.profiled_us for op in rows(path, *nodes, latency_us=15.0)] == [3, 6, 12]
    assert profiler_us(answer(*nodes), 40.0) == 0, "the rest of the run was spent outside"
    assert profiler_us(answer(*nodes), 1.0) == 3, "no operator takes less than nothing"
    assert profiler_us(answer(*nodes), None) == 0


# -- gates ----------------------------------------------------------------------------------------------------------


def test_a_fallback_is_counted_by_nodes_where_they_are_known(tmp_path):
    path = convolutions(tmp_path / "a.onnx")
    on_gpu = executed("TRT_graph_0", "TRT_graph_0", ["float 8"], ["float 8"], [30.0] * 20, "TensorrtExecutionProvider")
    on_cpu = executed("add", "Add", ["float 8"], ["float 8"])
    found = answer(on_gpu, on_cpu)
    asked = "TensorrtExecutionProvider"
    assert node_counts(path, asked, found)["fallback_nodes"] == 1
    (finding,) = findings(path, asked, found)
    assert finding.what == f"1 of 2 nodes did not run on {asked}: 1 on {CPU}, which took 25 % of the time"
    assert finding.nodes == ("add",)
    assignment = {asked: 97, CPU: 3}
    assert node_counts(path, asked, found, assignment)["fallback_nodes"] == 3
    (finding,) = findings(path, asked, found, assignment)
    assert finding.what.startswith(f"3 of 100 nodes did not run on {asked}: 3 on {CPU}")
    assert node_counts(path, asked, None, {asked: 97})["fallback_nodes"] == 0
    assert node_counts(path, asked, None)["fallback_nodes"] is None
    assert node_counts(path, asked, answer())["fallback_nodes"] is None


def test_int8_in_float_is_unknown_where_nodes_were_joined(tmp_path):
    path = quantized(tmp_path / "q.onnx")
    blob = executed("TRT_graph_0", "TRT_graph_0", ["float 8"], ["float 8"], provider="TensorrtExecutionProvider")
    assert node_counts(path, "TensorrtExecutionProvider", answer(blob))["float_int8_nodes"] is None
    (finding,) = findings(path, "TensorrtExecutionProvider", answer(blob))
    assert (finding.kind, finding.nodes) == ("unseen", ("conv", "add", "head"))
    assert finding.what.startswith("3 of 3 int8 nodes cannot be found among what ran")
    assert node_counts(path, CPU, None)["float_int8_nodes"] is None
    assert node_counts(convolutions(tmp_path / "f.onnx"), CPU, None)["float_int8_nodes"] == 0


def profiled(path, tmp_path):
    """Rows of the real thing: onnxruntime's own profiler, read here in a few lines."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "trace")
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=[CPU])
    for _ in range(20):
        session.run(None, {"x": np.ones((1, 16, 14, 14), np.float32)})
    with Path(session.end_profiling()).open() as file:
        events = json.load(file)
    found = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            args, name = event["args"], event["name"].removesuffix("_kernel_time")
            sides = [
                [[kind, shape] for part in args[key] for kind, shape in part.items()]
                for key in ("input_type_shape", "output_type_shape")
            ]
            row = {"name": name, "op_type": args["op_name"], "provider": args["provider"], "us": []}
            found.setdefault(name, {**row, "inputs": sides[0], "outputs": sides[1]})["us"].append(event["dur"])
    return operators(read(path), {"nodes": list(found.values())}, 0.95)


@pytest.mark.parametrize(
    ("weight", "activation", "lies"),
    [(np.int8, np.uint8, ()), (np.uint8, np.int8, ("conv", "add"))],
)
def test_int8_in_float_of_a_real_run(tmp_path, weight, activation, lies):
    """int8 activations with uint8 weights: onnxruntime has no kernel, and says nothing."""
    path = quantized(tmp_path / "q.onnx", weight, activation)
    ran = profiled(path, tmp_path)
    seen = gates(read(path), ran, CPU)
    assert (seen.fallback_nodes, seen.float_int8_nodes) == (0, len(lies))
    assert tuple(name for finding in seen.findings for name in finding.nodes) == lies
    if lies:
        assert seen.findings[0].what.startswith("2 of 3 int8 nodes ran in float: ")
    conv = next(op for op in ran if op.source and op.source.name == "conv")
    assert (conv.precision, conv.macs) == ("float32" if lies else "int8", 14 * 14 * 16 * 16 * 9)


def test_macs_of_a_real_float_run(tmp_path):
    path = convolutions(tmp_path / "f.onnx")
    ran = profiled(path, tmp_path)
    macs = {op.source.name: op.macs for op in ran if op.macs}
    assert macs == {"conv": 14 * 14 * 16 * 16 * 9, "head": 160}
    assert {op.precision for op in ran} == {"float32"}
    assert gates(read(path), ran, CPU).findings == ()


def test_a_look_up_has_no_macs(tmp_path):
    (op,) = rows(two_inputs(tmp_path / "a.onnx"), executed("look-up", "Gather", ["float 100 8"], ["float 1 8"]))
    assert op.macs is None
    assert op.gmacs_per_s is None
    assert op.intensity is None
