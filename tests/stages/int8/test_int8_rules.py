"""What stays float by rule: heads do not, tails do."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages import graph
from stages.int8.rules import follows, kept_float
from stages.vendors import ort_quantizer
from targets.target import Int8Rules, load, shipped

OPS = ort_quantizer.operators(Int8Rules())
RANDOM = np.random.default_rng(0)


def constants(**shapes):
    return {name: RANDOM.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def model(nodes, weights, given=("n", 3, 8, 8), outputs=("y",)):
    """A graph of (operator, inputs, outputs, attributes) rows; nodes are named after their first output."""
    made = [helper.make_node(op, i.split(), o.split(), o.split()[0], **more) for op, i, o, more in nodes]
    body = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CONV = ("Conv", "x k", "c", {"pads": [1, 1, 1, 1]})
POOLED = [("Relu", "c", "r", {}), ("GlobalAveragePool", "r", "p", {}), ("Flatten", "p", "f", {})]
K = constants(k=(4, 3, 3, 3), w=(4, 5), b=(5,))


def test_a_classifiers_head_is_quantized():
    assert kept_float(model([CONV, *POOLED, ("Gemm", "f w b", "y", {})], K), OPS) == {}
    assert kept_float(model([CONV, *POOLED], K, outputs=("f",)), OPS) == {}


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_scores_at_the_end_stay_float_with_what_follows(end):
    rows = [CONV, *POOLED, ("Gemm", "f w b", "l", {}), (end, "l", "s", {}), ("Mul", "s b", "y", {})]
    found = kept_float(model(rows, K), {*OPS, end})
    assert list(found) == ["s", "y"]
    assert found["s"].startswith("scores at the end of the network")
    assert found["y"].startswith(f"follows {end} 's': scores")


def test_gates_are_activations():
    """x * sigmoid(x) after the last convolution, and squeeze-and-excitation."""
    swish = [CONV, ("Sigmoid", "c", "s", {}), ("Mul", "c s", "m", {}), ("GlobalAveragePool", "m", "y", {})]
    assert kept_float(model(swish, K), OPS) == {}
    gate = [
        CONV,
        ("GlobalAveragePool", "c", "p", {}),
        ("Conv", "p k1", "e", {}),
        ("Sigmoid", "e", "s", {}),
        ("Mul", "c s", "m", {}),
        ("GlobalAveragePool", "m", "y", {}),
    ]
    assert kept_float(model(gate, K | constants(k1=(4, 4, 1, 1))), OPS) == {}


def detector(end):
    """One head of 4 + 2 channels at 64 places: corners from exponentials and a grid, scores from a sigmoid."""
    rows = [
        ("Conv", "x k0", "stem", {"pads": [1] * 4}),
        ("Relu", "stem", "act", {}),
        ("Conv", "act k", "head", {}),
        ("Reshape", "head flat", "rows", {}),
        ("Transpose", "rows", "places", {"perm": [0, 2, 1]}),
        ("Split", "places parts", "raw scores_raw", {"axis": 2}),
        ("Exp", "raw", "sizes", {}),
        ("Mul", "sizes stride", "scaled", {}),
        ("Add", "scaled grid", "boxes", {}),
        ("Sigmoid", "scores_raw", "scores", {}),
        *end,
    ]
    weights = constants(k0=(8, 3, 3, 3), k=(6, 8, 1, 1), stride=(4,), grid=(64, 4))
    weights |= {"flat": np.array([0, 6, 64]), "parts": np.array([4, 2]), "most": np.array([5])}
    return rows, weights


def test_box_decoding_stays_float_up_to_the_outputs():
    rows, weights = detector([("Concat", "boxes scores", "y", {"axis": 2})])
    found = kept_float(model(rows, weights), OPS)
    assert set(found) == {"rows", "places", "raw", "scaled", "boxes", "scores", "y"}
    assert found["scaled"] == "decodes for or after Exp 'sizes': coordinates need more than 8 bits"
    assert "scores at the end" in found["scores"]
    assert "sizes" not in found  # Exp is float anyway
    assert "sizes" in kept_float(model(rows, weights), {*OPS, "Exp"})


def test_box_decoding_stays_float_up_to_nms():
    rows, weights = detector(
        [
            ("Transpose", "scores", "by_class", {"perm": [0, 2, 1]}),
            ("NonMaxSuppression", "boxes by_class most", "y", {}),
        ]
    )
    found = kept_float(model(rows, weights), OPS)
    assert {"y", "by_class", "boxes", "scaled", "raw"} <= set(found)
    assert not {"stem", "act", "head"} & set(found)
    assert "picked at random" in found["y"]


def test_a_pick_between_layers_takes_its_decoding_along_and_no_more():
    """As a region proposal network does: TopK over scores of one branch, and another convolution after it."""
    rows = [
        CONV,
        ("Relu", "c", "r", {}),
        ("Conv", "r k1", "score", {}),
        ("Reshape", "score flat", "row", {}),
        ("TopK", "row most", "best place", {}),
        ("Mul", "r half", "h", {}),
        ("Conv", "h k1", "d", {}),
        ("Add", "d best", "y", {}),
    ]
    weights = K | constants(k1=(1, 4, 1, 1), half=(1,)) | {"flat": np.array([0, 1, -1]), "most": np.array([1])}
    assert set(kept_float(model(rows, weights), OPS)) == {"row", "best", "y"}


def test_the_expected_value_of_a_softmax_is_no_layer():
    """Distribution focal loss: 16 bins of a distance, softmax, and a convolution with weights 0 to 15."""
    rows = [
        ("Conv", "x k", "head", {}),
        ("Reshape", "head bins", "b", {}),
        ("Transpose", "b", "t", {"perm": [0, 2, 1, 3]}),
        ("Softmax", "t", "s", {"axis": 1}),
        ("Conv", "s dfl", "e", {}),
        ("Mul", "e stride", "y", {}),
    ]
    weights = constants(k=(64, 3, 1, 1), stride=(1,)) | {
        "bins": np.array([0, 4, 16, 64]),
        "dfl": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
    }
    found = kept_float(model(rows, weights), OPS)
    assert set(found) == {"s", "e", "y"}
    assert "expected value of a softmax" in found["e"]


def test_attention_keeps_softmax_and_norms_float_and_its_products_int8():
    rows = [
        ("LayerNormalization", "x g b", "n", {}),
        ("MatMul", "n wq", "q", {}),
        ("MatMul", "n wk", "key", {}),
        ("Transpose", "key", "kt", {"perm": [0, 2, 1]}),
        ("MatMul", "q kt", "a", {}),
        ("Softmax", "a", "s", {}),
        ("MatMul", "s n", "o", {}),
        ("ReduceMean", "o", "m", {"axes": [1], "keepdims": 0}),
        ("MatMul", "m w", "y", {}),
    ]
    weights = constants(g=(8,), b=(8,), wq=(8, 8), wk=(8, 8), w=(8, 3))
    found = kept_float(model(rows, weights, given=("n", 6, 8)), OPS)
    assert list(found) == ["n", "s"]
    assert "mean and variance" in found["n"]
    assert "most of a long row becomes 0" in found["s"]


def test_excluding_what_the_rules_name_leaves_it_without_int8(tmp_path):
    rows, weights = detector([("Concat", "boxes scores", "y", {"axis": 2})])
    float_model = model(rows, weights)
    float_model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 64, 6)))
    folded = ort_quantizer.fold(float_model, tmp_path)
    x = RANDOM.normal(size=(8, 3, 8, 8)).astype(np.float32)
    ranges = ort_quantizer.calibrate(folded, lambda: [x])
    drops = []
    expected = graph.session(folded).run(None, {"x": x})[0]
    for exclude in ((), kept_float(folded, OPS)):
        int8 = ort_quantizer.place(folded, ranges, Int8Rules(), OPS, exclude)
        got = graph.session(int8).run(None, {"x": x})[0]
        drops.append(abs(got - expected)[..., 4:].mean())
        if exclude:
            readers = {name: node.op_type for node in int8.graph.node for name in node.input}
            assert all(readers[node] != "QuantizeLinear" for node in ("boxes", "scores"))
    assert drops[1] < drops[0] / 3  # scores of 0 to 1 share no scale with boxes any more


def test_what_follows_from_a_targets_rules():
    with_vnni, without, arm = (
        follows(rules)
        for rules in (
            Int8Rules(),
            Int8Rules(reduce_range=True),
            Int8Rules(activations="int8", symmetric_activations=True),
        )
    )
    assert "all 8 bits (u8s8): VNNI" in with_vnni[0]
    assert "weights have 7 bits, -64 to 64 (u8s8 without VNNI)" in without[0]
    assert "signed (s8s8): what ARM's kernels and TensorRT want" in arm[0]
    assert "zero point 0" in arm[1]
    assert all("QDQ form" in sentences[-1] for sentences in (with_vnni, without, arm))
    assert follows(Int8Rules(op_types=("Conv", "Gemm")))[-1] == "nothing but Conv, Gemm is quantized"
    assert any("more exact" in s for s in follows(Int8Rules(activations="int8", reduce_range=True)))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_profile_follows_one_of_the_rules(name):
    rules = load(name).int8
    if rules.activations == "int8":
        assert not rules.reduce_range
    assert len(follows(rules)) >= 3
