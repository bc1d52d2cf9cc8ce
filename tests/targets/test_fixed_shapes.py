"""Axes that a file leaves open, fixed for a provider that must know all shapes; seen in what really ran."""

import numpy as np
import pytest
from onnx import TensorProto
from probing import METER, run
from profiled_graphs import node, two_inputs, weights, write

from targets import artifact
from targets.errors import InputError
from targets.inputs import open_axes
from targets.measure import measure, outputs
from targets.profiling import profile
from targets.target import Meter, Runtime, Target, load
from targets.testing import FakeDevice, tiny_onnx

OPEN = Target(name="open", meter=Meter(samples=30, blocks=3, warmup_s=0, max_seconds=2, throughput_batch=8, energy_s=0))
FIXED = OPEN.model_copy(update={"name": "fixed", "runtime": Runtime(fixed_shapes=True)})


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((5, 3, 8)).astype(np.float32)


@pytest.fixture
def shaped(tmp_path):
    """(batch, length, 8) -> (batch, 4), by a Shape that onnxruntime computes beforehand where the shape is known."""
    nodes = [
        node("Shape", "x", "s", "shape"),
        node("Gather", "s first", "n", "count"),
        node("Concat", "n rest", "to", "to", axis=0),
        node("ReduceMean", "x axes", "m", "mean", keepdims=0),
        node("Reshape", "m to", "f", "flat"),
        node("MatMul", "f w", "y", "head"),
    ]
    constants = {"first": np.array([0]), "rest": np.array([-1]), "axes": np.array([1]), "w": weights(8, 4)}
    inputs = {"x": (TensorProto.FLOAT, ["batch", "length", 8])}
    return write(tmp_path / "shaped.onnx", nodes, constants, inputs, {"y": (TensorProto.FLOAT, ["batch", 4])})


def ran(measured):
    return {one["op_type"] for one in measured.models["m"].operators["nodes"]}


def test_the_probe_fixes_what_the_job_says(tmp_path):
    """Asked for batches of 1 and 8, the model takes 2 at a time."""
    tiny_onnx(tmp_path / "a.onnx")
    inputs = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)
    tasks = ["session", "latency", "throughput", "operators", "outputs"]
    _, free = run(tmp_path, ["outputs"])
    want = np.load(tmp_path / free["models"]["a"]["outputs"])
    code, answer = run(tmp_path, tasks, axes={"batch": 2}, meter={**METER, "samples": 30})
    assert code == 0, answer
    assert answer["models"]["a"]["operators"]["nodes"][-1]["outputs"] == [["float", [2, 10]]]
    assert len(answer["models"]["a"]["session_ms"]) == 3
    np.testing.assert_allclose(np.load(tmp_path / answer["models"]["a"]["outputs"]), want, rtol=1e-5, atol=1e-5)


def test_measured_with_all_shapes_known(shaped, images):
    assert "Shape" in ran(measure(OPEN, {"m": shaped}, images))
    assert "Shape" not in ran(measure(FIXED, {"m": shaped}, images))


def test_profiled_with_all_shapes_known(shaped):
    known = {"x": (2, 3, 8)}
    assert "Shape" in ran(profile(OPEN, {"m": shaped}, known, seconds=0.1).measured)
    found = profile(FIXED, {"m": shaped}, known, batches=[2, 4], seconds=0.1)
    assert "Shape" not in ran(found.measured)
    assert [sweep.batch for sweep in found.sweeps] == [2, 4]


def test_outputs_are_the_same(shaped, images):
    want = outputs(OPEN, {"m": shaped}, images)["m"]
    np.testing.assert_allclose(outputs(FIXED, {"m": shaped}, images)["m"], want, rtol=1e-5, atol=1e-6)
    fake = FakeDevice(compute=lambda x: x.mean((1, 2))[:, None])
    outputs(FIXED, {"m": shaped}, images, device=fake)
    outputs(OPEN, {"m": shaped}, images, device=fake)
    assert [one["models"]["m"]["axes"] for one in fake.jobs] == [{"batch": 1, "length": 3}, {}]


def test_axes_that_cannot_be_fixed(tmp_path):
    model = artifact.load(two_inputs(tmp_path / "a.onnx"), batched=False)
    assert open_axes(model, {"ids": (2, 16), "mask": (2, 16)}) == {"batch": 2, "length": 16}
    with pytest.raises(InputError, match=r"input 'mask' of shape batchxlength cannot be fixed at 2x8"):
        open_axes(model, {"ids": (2, 16), "mask": (2, 8)})
    nameless = tiny_onnx(tmp_path / "b.onnx", batch=None)
    with pytest.raises(InputError, match=r"input 'x' of shape \?x3x4x4 cannot be fixed at 1x3x4x4"):
        outputs(FIXED, {"m": nameless}, np.zeros((2, 3, 4, 4), np.float32))


def test_fixed_shapes_are_a_providers_own(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: qualcomm_htp\nruntime: {threads: 2}\n")
    (tmp_path / "b.yaml").write_text("extends: qualcomm_htp\nruntime: {provider: CPUExecutionProvider}\n")
    assert load("a.yaml", tmp_path).runtime.fixed_shapes
    assert not load("b.yaml", tmp_path).runtime.fixed_shapes
