"""What the probe feeds a model with."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from probing import METER, run, run_here, save, value, weights

PAIR = {"image": "image.npy", "ids": "ids.npy"}


@pytest.fixture
def folder(tmp_path):
    """`pair`: image (n, 4) float32 and ids (n, 3) int64 -> (n, 5); and files of examples for both."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["image", "w"], ["h"]),
        helper.make_node("Add", ["h", "sum"], ["y"]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    inputs = [value("image", ["n", 4]), value("ids", ["n", 3], TensorProto.INT64)]
    save(
        tmp_path / "pair.onnx",
        nodes,
        inputs,
        [value("y", ["n", 5])],
        [weights("table", 9, 5), weights("w", 4, 5), axis],
    )
    random = np.random.default_rng(1)
    np.save(tmp_path / "image.npy", random.standard_normal((7, 4)).astype(np.float32))
    np.save(tmp_path / "ids.npy", random.integers(0, 9, (7, 3)))
    return tmp_path


def expected(folder, feed):
    return onnxruntime.InferenceSession(folder / "pair.onnx").run(None, feed)[0]


def arrays(folder):
    return {name: np.load(folder / file) for name, file in PAIR.items()}


def test_several_inputs_make_batches_together(folder):
    code, answer = run(folder, ["outputs", "latency", "throughput"], ["pair"], inputs=PAIR)
    assert code == 0, answer
    got = np.load(folder / answer["models"]["pair"]["outputs"])
    np.testing.assert_allclose(got, expected(folder, arrays(folder)), rtol=1e-5)


def test_whole_arrays_are_fed_as_they_are(folder):
    code, answer = run(folder, ["outputs", "latency", "operators"], ["pair"], inputs=PAIR, whole=True)
    assert code == 0, answer
    got = np.load(folder / answer["models"]["pair"]["outputs"])
    np.testing.assert_allclose(got, expected(folder, arrays(folder)), rtol=1e-5)
    fed = [node["inputs"][0] for node in answer["models"]["pair"]["operators"]["nodes"]]
    assert ["float", [7, 4]] in fed, "all seven at a time"


def test_whole_arrays_of_any_type(tmp_path):
    """A scalar, a bool and a half: none has examples on its first axis."""
    nodes = [
        helper.make_node("Cast", ["half"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["h", "scale"], ["s"]),
        helper.make_node("Where", ["keep", "s", "h"], ["y"]),
    ]
    inputs = [value("scale", []), value("keep", [2], TensorProto.BOOL), value("half", [2], TensorProto.FLOAT16)]
    save(tmp_path / "mixed.onnx", nodes, inputs, [value("y", [2])])
    np.save(tmp_path / "scale.npy", np.float32(3))
    np.save(tmp_path / "keep.npy", np.array([True, False]))
    np.save(tmp_path / "half.npy", np.array([1.5, 2.5], np.float16))
    files = {name: f"{name}.npy" for name in ("scale", "keep", "half")}
    code, answer = run_here(tmp_path, ["outputs", "throughput"], ["mixed"], inputs=files, whole=True)
    assert code == 0, answer
    np.testing.assert_array_equal(np.load(tmp_path / answer["models"]["mixed"]["outputs"]), [4.5, 2.5])


def test_examples_take_the_models_type(folder):
    """Bytes of images, float64 of a careless script: what loses nothing that matters is converted."""
    np.save(folder / "image.npy", np.arange(28, dtype=np.uint8).reshape(7, 4))
    np.save(folder / "ids.npy", np.arange(21, dtype=np.int32).reshape(7, 3) % 9)
    code, answer = run_here(folder, ["outputs"], ["pair"], inputs=PAIR)
    assert code == 0, answer


@pytest.mark.parametrize(
    ("files", "whole", "error"),
    [
        ({}, False, r"its input ids (int64, shape (n, 3)) was given nothing; given: image"),
        ({"ids": np.zeros((7, 3), np.int64), "z": np.zeros(1)}, False, "it has no input z; it has image (float32, "),
        ({"ids": np.zeros((6, 3), np.int64)}, False, "different numbers of examples: image: 7, ids: 6"),
        ({"ids": np.zeros((7, 4), np.int64)}, False, "ids (int64, shape (n, 3)) was given examples of int64, shape"),
        ({"ids": np.zeros((7, 3), np.float32)}, False, "ids (int64, shape (n, 3)) was given examples of float32"),
        ({"ids": np.zeros((7, 3), np.int32)}, True, "ids (int64, shape (n, 3)) was given int32, shape (7, 3)"),
        ({"ids": np.zeros((7, 3, 1), np.int64)}, True, "was given int64, shape (7, 3, 1)"),
        ({"ids": np.zeros((6, 3), np.int64)}, True, "could not run model 'pair': "),
        ({"ids": np.array(7)}, False, "was given examples of int64, shape ()"),
        ({"ids": np.array([{}])}, False, "cannot be read: "),
        ({"image": np.zeros((0, 4), np.float32), "ids": np.zeros((0, 3), np.int64)}, False, "there are no examples"),
    ],
)
def test_what_does_not_fit_is_told(folder, files, whole, error):
    inputs = {"image": "image.npy"}
    for name, array in files.items():
        np.save(folder / f"given_{name}.npy", array, allow_pickle=True)
        inputs[name] = f"given_{name}.npy"
    code, answer = run_here(folder, ["latency"], ["pair"], inputs=inputs, whole=whole)
    assert code == 1
    assert "model 'pair'" in answer["error"]
    assert error in answer["error"]


def test_strings_are_refused(tmp_path):
    node = helper.make_node("Identity", ["t"], ["y"])
    save(
        tmp_path / "text.onnx",
        [node],
        [value("t", ["n"], TensorProto.STRING)],
        [value("y", ["n"], TensorProto.STRING)],
    )
    code, answer = run_here(tmp_path, ["latency"], ["text"], inputs={"t": "t.npy"})
    assert code == 1
    assert "input 't' is tensor(string); supported: tensor(float), " in answer["error"]


def test_batches_fixed_differently_need_whole_arrays(tmp_path):
    node = helper.make_node("MatMul", ["p", "q"], ["y"])
    save(tmp_path / "mm.onnx", [node], [value("p", [2, 3]), value("q", [3, 4])], [value("y", [2, 4])])
    np.save(tmp_path / "p.npy", np.ones((2, 3), np.float32))
    np.save(tmp_path / "q.npy", np.ones((2, 4), np.float32))
    code, answer = run_here(tmp_path, ["latency"], ["mm"], inputs={"p": "p.npy", "q": "q.npy"})
    assert code == 1
    assert "fix different batches, p: 2, q: 3; feed it whole arrays" in answer["error"]


def test_an_output_without_a_batch_is_no_output_of_examples(tmp_path):
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    save(tmp_path / "total.onnx", [node], [value("x", ["n", 4])], [value("y", [])])
    np.save(tmp_path / "x.npy", np.ones((5, 4), np.float32))
    code, answer = run_here(tmp_path, ["outputs"], ["total"])
    assert code == 1
    assert "4 examples gave an output of shape (): its first axis must be the batch" in answer["error"]


def test_a_batch_that_the_model_fixes_counts_in_full(folder):
    """Throughput counts inferences; the batch asked for is 8, and the model takes 3."""
    node = helper.make_node("Relu", ["x"], ["y"])
    save(folder / "three.onnx", [node], [value("x", [3, 4])], [value("y", [3, 4])])
    code, answer = run(
        folder, ["latency", "throughput"], ["three"], inputs={"x": "image.npy"}, meter={**METER, "samples": 300}
    )
    assert code == 0, answer
    got = answer["models"]["three"]
    runs_per_s = 1e3 / min(ms for block in got["latency_ms"] for ms in block)  # the best of each: others may disturb
    assert 1.1 * runs_per_s < max(got["throughput_per_s"]) < 6 * runs_per_s
