import json
import re

import numpy as np
import pytest

from targets import measure as module
from targets.budget import Budget, Measurement, judge
from targets.errors import DeviceError, InputError
from targets.measure import Measured, Samples, accuracy, accuracy_drop, identity, measure, measurements, outputs
from targets.target import Meter, Runtime, Target, load
from targets.testing import FakeDevice, tiny_onnx

QUICK = Meter(warmup_s=0.02, samples=120, blocks=6, max_seconds=10, throughput_batch=8)
TARGET = load("local").model_copy(update={"meter": QUICK})


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((16, 3, 4, 4)).astype(np.float32)


@pytest.fixture
def net(tmp_path):
    return tiny_onnx(tmp_path / "a.onnx")


def reference(path, x):
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, {"x": x})[0]


# ---- the real thing


def test_two_models_on_this_machine(tmp_path, images):
    models = {
        "float teacher": tiny_onnx(tmp_path / "a.onnx", width=65536),
        "keep 0.5": tiny_onnx(tmp_path / "b.onnx", width=8),
    }
    said = []
    found = measure(TARGET, models, images, said.append)
    assert said[0] == "measuring 2 models in turns on local, 120 latencies each"
    for name, path in models.items():
        got = found.models[name]
        assert [len(block) for block in got.latency_ms] == [20] * 6
        assert len(got.throughput_per_s) == 6
        assert len(got.session_ms) == len(got.peak_memory_mb) == 3
        assert got.size_bytes == path.stat().st_size
    assert found.environment["target"] == found.environment["device"] == "local"
    assert found.environment["cpu"] == {k: v for k, v in identity(TARGET).items() if k != "device"}
    ours = measurements(found, "keep 0.5", "float teacher")
    assert ours["speedup_p50"].low > 3, "8192 times less work"
    assert ours["latency_p50_ms"].instrument.startswith("onnxruntime 1.")
    assert "latency_p95_ms" in ours
    assert "latency_p99_ms" not in ours, "120 samples bound no p99"
    assert ours["size_mb"].value == models["keep 0.5"].stat().st_size / 1e6
    assert 10 < ours["peak_memory_mb"].low <= ours["peak_memory_mb"].value <= ours["peak_memory_mb"].high
    checks = judge(Budget(latency_p50_ms=1e3, size_mb=1e-4, peak_memory_mb=1e4, throughput_per_s=1), ours)
    assert [c.verdict for c in checks] == ["met", "met", "missed", "met"]


@pytest.mark.parametrize("batch", ["batch", 1, 5])
def test_outputs_from_an_array_or_from_batches(tmp_path, images, batch):
    net = tiny_onnx(tmp_path / "a.onnx", batch=batch)
    found = outputs(TARGET, net, images)
    padded = np.concatenate([images, images])
    size = batch if isinstance(batch, int) else 16
    expected = np.concatenate([reference(net, padded[i : i + size]) for i in range(0, 16, size)])[:16]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    streamed = outputs(TARGET, net, (images[i : i + 7] for i in range(0, 16, 7)))
    np.testing.assert_array_equal(found, streamed)


def test_the_runtime_of_the_target_is_what_the_device_is_asked_for(net, images):
    device = FakeDevice(compute=lambda x: np.zeros((len(x), 10), np.float32))
    runtime = Runtime(threads=2, options={"a": "b"})
    target = TARGET.model_copy(update={"runtime": runtime})
    measure(target, {"a": net}, images, device=device)
    outputs(target, net, images, device)
    assert all(job["runtime"] == runtime.model_dump() for job in device.jobs)
    assert [job["tasks"] for job in device.jobs] == [
        ["session", "latency", "throughput"],
        *[["memory"]] * 3,
        ["outputs"],
    ]


def test_a_provider_that_is_not_there(net, images):
    moon = TARGET.model_copy(update={"runtime": Runtime(provider="MoonExecutionProvider")})
    with pytest.raises(DeviceError, match=r"has no MoonExecutionProvider here; it has .*CPUExecutionProvider"):
        measure(moon, {"a": net}, images)


# ---- what is refused before any process starts


def test_inputs_that_do_not_fit(net):
    x = np.zeros((4, 3, 5, 5), np.float32)
    match = re.escape(f"{net}: takes inputs of shape (batch, 3, 4, 4) and was given (4, 3, 5, 5)")
    with pytest.raises(InputError, match=match):
        measure(TARGET, {"a": net}, x, device=FakeDevice())
    with pytest.raises(InputError, match=match):
        outputs(TARGET, net, x, FakeDevice())
    with pytest.raises(InputError, match=r"was given \(3, 4, 4\)"):
        outputs(TARGET, net, np.zeros((3, 4, 4), np.float32), FakeDevice())


def test_batches_that_change_shape(net, images):
    with pytest.raises(InputError, match=r"a batch has inputs of shape \(3, 5, 5\), the first had \(3, 4, 4\)"):
        outputs(TARGET, net, [images, np.zeros((4, 3, 5, 5), np.float32)], FakeDevice())


def test_no_inputs_at_all(net):
    with pytest.raises(InputError, match="there are no inputs to run the model on\n   help: give at least one"):
        outputs(TARGET, net, [], FakeDevice())


def test_a_batch_that_is_fixed_cannot_be_timed_at_one(tmp_path, images):
    net = tiny_onnx(tmp_path / "a.onnx", batch=4)
    with pytest.raises(InputError, match="has its batch fixed to 4; latency is measured at batch 1\n   help: export"):
        measure(TARGET, {"a": net}, images, device=FakeDevice())


def test_what_is_no_artifact(tmp_path, images, net):
    (tmp_path / "b.onnx").symlink_to(net)
    with pytest.raises(InputError, match="symbolic link"):
        measure(TARGET, {"a": tmp_path / "b.onnx"}, images, device=FakeDevice())
    with pytest.raises(InputError, match="symbolic link"):
        outputs(TARGET, tmp_path / "b.onnx", images, FakeDevice())


def test_outputs_that_are_no_classes(net, images):
    with pytest.raises(InputError, match=r"gives outputs of shape \(16, 2, 5\)\n   help: a classifier gives"):
        outputs(TARGET, net, images, FakeDevice(compute=lambda x: np.zeros((len(x), 2, 5), np.float32)))


# ---- on a fake device


def test_a_device_error_is_passed_on(net, images):
    with pytest.raises(DeviceError, match=r"^no such host$"):
        measure(TARGET, {"a": net}, images, device=FakeDevice(error="no such host"))


def test_a_fake_device_computes_only_what_it_was_given(net, images):
    with pytest.raises(DeviceError, match="this fake device was given nothing to compute outputs with"):
        outputs(TARGET, net, images, FakeDevice())
    found = outputs(TARGET, net, images, FakeDevice(compute=lambda x: x.reshape(len(x), -1)[:, :10]))
    np.testing.assert_array_equal(found, images.reshape(16, -1)[:, :10])


def test_each_model_serves_alone_for_its_memory(net, images):
    device = FakeDevice(peak_memory_mb={"b": 80.0})
    found = measure(TARGET, {"a": net, "b": net}, images, device=device)
    assert [(job["tasks"], list(job["models"])) for job in device.jobs] == [
        (["session", "latency", "throughput"], ["a", "b"]),
        *[(["memory"], ["a"]), (["memory"], ["b"])] * 3,
    ]
    assert found.models["a"].peak_memory_mb == (50, 50, 50)
    assert found.models["b"].peak_memory_mb == (80, 80, 80)


def test_a_limit_on_p99_asks_for_the_samples_that_it_takes(net, images):
    device = FakeDevice()
    tight = TARGET.model_copy(update={"budget": Budget(latency_p99_ms=1)})
    measure(tight, {"a": net}, images, device=device)
    measure(TARGET, {"a": net}, images, device=device)
    asked = [job["meter"]["samples"] for job in device.jobs if "latency" in job["tasks"]]
    assert asked == [299, 120]
    found = measurements(measure(tight, {"a": net}, images, device=FakeDevice()), "a")
    assert "latency_p99_ms" in found


def test_a_busy_machine_is_told(net, images, monkeypatch):
    said = []
    monkeypatch.setattr(module, "_busy", lambda environment: "the machine was busy")
    found = measure(TARGET, {"a": net}, images, said.append, FakeDevice())
    assert said[-1] == "the machine was busy"
    assert found.environment["notes"] == ["the machine was busy"]


@pytest.mark.parametrize(("load", "busy"), [(2.0, ""), (3.1, "the machine was busy (load 3.1 on 2 cores)")])
def test_what_busy_is(load, busy):
    environment = {"cpu": {"cores": 2}, "after": {"load_average_1min": load}}
    assert module._busy(environment).partition(":")[0] == busy
    assert module._busy({}) == ""


def test_measured_survives_json(net, images):
    found = measure(TARGET, {"a": net, "b": net}, images, device=FakeDevice())
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_identity_names_the_device():
    assert identity(Target(name="x"), FakeDevice())["device"] == "local"
    assert identity(TARGET) == json.loads(json.dumps(identity(TARGET)))


# ---- arithmetic


def _measured(**blocks):
    return Measured(
        {"onnxruntime": "1.0"},
        {
            name: Samples(
                tuple(map(tuple, latency)), (10.0, 11.0, 12.0), (4.0, 2.0, 3.0), (50.0, 52.0, 51.0), 1_500_000
            )
            for name, latency in blocks.items()
        },
    )


def test_measurements_of_given_samples():
    blocks = (1 + np.arange(600).reshape(12, 50) % 100 / 100).tolist()
    found = measurements(_measured(a=blocks), "a", confidence=0.95)
    assert list(found) == [
        "latency_p50_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "throughput_per_s",
        "session_ms",
        "size_mb",
        "peak_memory_mb",
    ]
    assert found["latency_p50_ms"].value == pytest.approx(1.49)
    assert found["latency_p50_ms"].samples == 600
    assert found["size_mb"] == Measurement("size_mb", 1.5, 1.5, 1.5, 1, "file size")
    assert (found["session_ms"].low, found["session_ms"].value, found["session_ms"].high) == (2, 3, 4)
    assert (found["peak_memory_mb"].low, found["peak_memory_mb"].value) == (50, 51)
    assert found["throughput_per_s"].value == 11
    assert found["throughput_per_s"].high == pytest.approx(11 + 4.302653 / 3**0.5, rel=1e-5)


def test_speedup_is_how_many_times_faster_than_the_baseline():
    found = measurements(_measured(a=[[4.0] * 10] * 6, b=[[2.0] * 10] * 6), "b", "a")
    assert found["speedup_p50"].value == pytest.approx(2)
    assert found["speedup_p50"].samples == 6


def test_accuracy():
    answers = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    found = accuracy(answers, np.array([0, 1, 2, 0, 0]), 0.95)
    assert (found.metric, found.value, found.samples) == ("accuracy", 80, 5)
    assert 0 < found.low < 80 < found.high < 100


def test_accuracy_drop_is_paired():
    labels = np.arange(200) % 4
    teacher, student = np.eye(4, dtype=np.float32)[labels], np.eye(4, dtype=np.float32)[labels]
    student[:3] = np.roll(student[:3], 1, axis=1)
    found = accuracy_drop(teacher, student, labels, 0.95)
    assert (found.metric, found.value) == ("accuracy_drop_points", 1.5)
    assert -0.5 < found.low < 1.5 < found.high < 4
    assert accuracy_drop(student, teacher, labels, 0.95).value == -1.5


def test_accuracy_of_what_does_not_fit():
    answers = np.zeros((3, 4), np.float32)
    with pytest.raises(InputError, match="3 outputs and 2 labels: one of each is needed per example"):
        accuracy(answers, np.array([0, 1]), 0.95)
    with pytest.raises(InputError, match="labels from 0 to 4 do not fit a model of 4 classes"):
        accuracy(answers, np.array([0, 1, 4]), 0.95)
    with pytest.raises(InputError, match="labels from -1 to 1 do not fit"):
        accuracy(answers, np.array([0, 1, -1]), 0.95)
    answers[1, 2] = np.nan
    with pytest.raises(DeviceError, match="the model gave NaN or infinite outputs for 1 of 3 examples"):
        accuracy(answers, np.array([0, 1, 2]), 0.95)
