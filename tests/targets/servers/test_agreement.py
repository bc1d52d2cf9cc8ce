"""How far answers agree: ulps, steps, classes and near ties."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.servers.agreement import Agreement, Grain, compare, grain_of
from targets.testing import tiny_onnx

INT8, FLOAT = Grain(0.5, 2.0), Grain(0.0, 1e-4)


def answers(k=4):
    return np.random.default_rng(0).normal(0, 20, (k, 5)).astype(np.float32)


def test_the_same_bits():
    found = compare(answers(), answers(), INT8)
    assert found == Agreement("equal", 4, 0, 0.0, 0.0, 0, 0)
    assert str(found) == "bit-equal in all 4 examples"
    assert compare(answers(), answers(), FLOAT).steps is None


@pytest.mark.parametrize("grain", [INT8, FLOAT])
def test_neighbouring_floats_are_one_ulp_apart(grain):
    near = np.nextafter(answers(), np.float32(np.inf))
    found = compare(answers(), near, grain)
    assert (found.verdict, found.ulps) == ("equal", 1)
    assert str(found) == "equal within 1 ulp in all 4 examples"
    two = compare(answers(), np.nextafter(near, np.float32(np.inf)), grain)
    assert (two.verdict, two.ulps) == ("close", 2)


def test_ulps_are_counted_across_zero():
    tiny = np.float32(1e-45)
    found = compare(np.asarray([[-tiny, 1]], np.float32), np.asarray([[tiny, 1]], np.float32), FLOAT)
    assert found.ulps == 2
    zeros = compare(np.asarray([[0.0, 1]], np.float32), np.asarray([[-0.0, 1]], np.float32), FLOAT)
    assert (zeros.verdict, zeros.ulps) == ("equal", 1)
    assert "bit-equal" not in str(zeros)


def test_some_steps_apart_is_close():
    far = answers()
    far[1, 2] += 1.0
    found = compare(answers(), far, INT8)
    assert (found.verdict, found.steps, found.other_class) == ("close", 2.0, 0)
    assert str(found) == "close: within 2 output steps (1); same class in all 4 examples"


def test_many_steps_apart_differs():
    far = answers()
    far[1, 2] += 2.5
    found = compare(answers(), far, INT8)
    assert found.verdict == "differs"
    assert str(found).startswith("DIFFERS by up to 5 output steps (2.5)")


def test_another_class_is_close_only_where_two_were_as_close():
    wanted = np.asarray([[10, 9.5, 0], [10, 3, 0]], np.float32)
    tie = np.asarray([[9.5, 10, 0], [10, 3, 0]], np.float32)
    found = compare(wanted, tie, INT8)
    assert (found.verdict, found.other_class, found.near_ties) == ("close", 1, 1)
    assert str(found).endswith("another class in 1 of 2, 1 of them near ties")
    other = compare(wanted, np.asarray([[10, 9.5, 0], [3, 10, 0]], np.float32), INT8)
    assert (other.verdict, other.other_class, other.near_ties) == ("differs", 1, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_differs(bad):
    spoiled = answers()
    spoiled[0, 0] = bad
    found = compare(answers(), spoiled, INT8)
    assert (found.verdict, found.ulps) == ("differs", -1)
    assert "not finite" in str(found)


def test_the_grain_of_a_float_model(tmp_path):
    found = grain_of(tiny_onnx(tmp_path / "m.onnx"), np.asarray([[0, 50]], np.float32))
    assert found.step == 0
    assert found.allowed == pytest.approx(0.005)


def quantized(path, last, scale=0.25):
    """A graph whose answers leave a DequantizeLinear, or an operator after it."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y" if last else "d"]),
        *([] if last else [helper.make_node("Relu", ["d"], ["y"])]),
    ]
    values = [numpy_helper.from_array(np.float32(scale), "s"), numpy_helper.from_array(np.uint8(128), "z")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "q", [x], [y], values), ir_version=10)
    onnx.save(model, path)
    return path


def test_the_grain_of_an_int8_model(tmp_path):
    given = np.asarray([[0, 51]], np.float32)
    assert grain_of(quantized(tmp_path / "a.onnx", True), given) == Grain(0.25, 1.0)
    found = grain_of(quantized(tmp_path / "b.onnx", False), given)
    assert found.step == pytest.approx(0.2)


@pytest.mark.parametrize("scale", [[], float("nan"), float("inf")])
def test_a_scale_that_says_nothing_leaves_the_grain_to_the_answers(tmp_path, scale):
    found = grain_of(quantized(tmp_path / "a.onnx", True, scale), np.asarray([[0, 51]], np.float32))
    assert found.step == pytest.approx(0.2)
