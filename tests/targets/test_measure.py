import json
import re

import numpy as np
import pytest

from targets.budget import Budget, judge
from targets.errors import DeviceError, InputError
from targets.measure import connect, measure, outputs, race
from targets.samples import Measured, measurements
from targets.target import Meter, Runtime, load
from targets.testing import FakeDevice, tiny_onnx

QUICK = Meter(warmup_s=0.02, samples=120, blocks=6, max_seconds=10, throughput_batch=8, energy_s=0.5)
CPU = ("model", "machine", "cores", "flags")
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
    assert found.environment["cpu"] == {k: v for k, v in connect(TARGET).identity().items() if k in CPU}
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
    found = outputs(TARGET, {"a": net}, images)["a"]
    padded = np.concatenate([images, images])
    size = batch if isinstance(batch, int) else 16
    expected = np.concatenate([reference(net, padded[i : i + size]) for i in range(0, 16, size)])[:16]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    streamed = outputs(TARGET, {"a": net}, (images[i : i + 7] for i in range(0, 16, 7)))["a"]
    np.testing.assert_array_equal(found, streamed)


def test_the_runtime_of_the_target_is_what_the_device_is_asked_for(net, images):
    device = FakeDevice(compute=lambda x: np.zeros((len(x), 10), np.float32))
    runtime = Runtime(threads=2, options={"a": "b"})
    target = TARGET.model_copy(update={"runtime": runtime})
    measure(target, {"a": net}, images, device=device)
    outputs(target, {"a": net}, images, device)
    assert all(job["runtime"] == runtime.model_dump() for job in device.jobs)
    assert [job["tasks"] for job in device.jobs] == [
        ["session", "latency", "throughput", "operators", "energy"],
        *[["memory"]] * 3,
        ["outputs"],
    ]


def test_a_provider_that_is_not_there(net, images):
    moon = TARGET.model_copy(update={"runtime": Runtime(provider="TensorrtExecutionProvider")})
    with pytest.raises(DeviceError, match=r"has no TensorrtExecutionProvider here; it has .*CPUExecutionProvider"):
        measure(moon, {"a": net}, images)


# ---- what is refused before any process starts


def test_inputs_that_do_not_fit(net):
    x = np.zeros((4, 3, 5, 5), np.float32)
    match = re.escape(f"{net}: takes inputs of shape (batch, 3, 4, 4) and was given (4, 3, 5, 5)")
    with pytest.raises(InputError, match=match):
        measure(TARGET, {"a": net}, x, device=FakeDevice())
    with pytest.raises(InputError, match=match):
        outputs(TARGET, {"a": net}, x, FakeDevice())
    with pytest.raises(InputError, match=r"was given \(3, 4, 4\)"):
        outputs(TARGET, {"a": net}, np.zeros((3, 4, 4), np.float32), FakeDevice())


def test_batches_that_change_shape(net, images):
    with pytest.raises(InputError, match=r"a batch has inputs of shape \(3, 5, 5\), the first had \(3, 4, 4\)"):
        outputs(TARGET, {"a": net}, [images, np.zeros((4, 3, 5, 5), np.float32)], FakeDevice())


def test_no_inputs_at_all(net):
    with pytest.raises(InputError, match="there are no inputs to run the model on\n   help: give at least one"):
        outputs(TARGET, {"a": net}, [], FakeDevice())


def test_a_batch_that_is_fixed_cannot_be_timed_at_one(tmp_path, images):
    net = tiny_onnx(tmp_path / "a.onnx", batch=4)
    with pytest.raises(InputError, match="has its batch fixed to 4; latency is measured at batch 1\n   help: export"):
        measure(TARGET, {"a": net}, images, device=FakeDevice())


def test_what_is_no_artifact(tmp_path, images, net):
    (tmp_path / "b.onnx").symlink_to(net)
    with pytest.raises(InputError, match="symbolic link"):
        measure(TARGET, {"a": tmp_path / "b.onnx"}, images, device=FakeDevice())
    with pytest.raises(InputError, match="symbolic link"):
        outputs(TARGET, {"a": tmp_path / "b.onnx"}, images, FakeDevice())


def test_outputs_that_are_no_classes(net, images):
    with pytest.raises(InputError, match=r"gives outputs of shape \(16, 2, 5\)\n   help: a classifier gives"):
        outputs(TARGET, {"a": net}, images, FakeDevice(compute=lambda x: np.zeros((len(x), 2, 5), np.float32)))


# ---- on a fake device


def test_a_device_error_is_passed_on(net, images):
    with pytest.raises(DeviceError, match=r"^no such host$"):
        measure(TARGET, {"a": net}, images, device=FakeDevice(error="no such host"))


def test_a_fake_device_computes_only_what_it_was_given(net, images):
    with pytest.raises(DeviceError, match="this fake device was given nothing to compute outputs with"):
        outputs(TARGET, {"a": net}, images, FakeDevice())
    found = outputs(TARGET, {"a": net}, images, FakeDevice(compute=lambda x: x.reshape(len(x), -1)[:, :10]))["a"]
    np.testing.assert_array_equal(found, images.reshape(16, -1)[:, :10])


def test_each_model_serves_alone_for_its_memory(net, images):
    device = FakeDevice(peak_memory_mb={"b": 80.0})
    found = measure(TARGET, {"a": net, "b": net}, images, device=device)
    assert [(job["tasks"], list(job["models"])) for job in device.jobs] == [
        (["session", "latency", "throughput", "operators", "energy"], ["a", "b"]),
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


def test_measured_survives_json(net, images):
    found = measure(TARGET, {"a": net, "b": net}, images, device=FakeDevice())
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found


# ---- sampling on


def test_sampling_goes_on_while_nothing_is_decided(net, images):
    device, said = FakeDevice(), []
    answers = iter([True, True, False])
    found = measure(TARGET, {"a": net, "b": net}, images, said.append, device, lambda measured: next(answers))
    asked = [job["meter"]["samples"] for job in device.jobs if "latency" in job["tasks"]]
    assert asked == [120, 240, 480]
    assert [job["tasks"] for job in device.jobs[-2:]] == [["latency"], ["latency"]]
    assert sum(map(len, found.models["a"].latency_ms)) == 840
    assert len(found.models["a"].latency_ms) == len(found.models["b"].latency_ms) == 18, "rounds stay paired"
    assert said[-2:] == ["not decided yet: 240 more latencies each", "not decided yet: 480 more latencies each"]


def test_sampling_ends_when_the_time_is_spent(net, images):
    meter = QUICK.model_copy(update={"max_seconds": 1.0})
    target = TARGET.model_copy(update={"meter": meter})
    device = FakeDevice()
    found = measure(target, {"a": net}, images, device=device, undecided=lambda measured: True)
    asked = [job["meter"]["max_seconds"] for job in device.jobs if "latency" in job["tasks"]]
    assert asked[:2] == [1.0, pytest.approx(1 - 0.120)]
    assert 0.9 <= sum(map(sum, found.models["a"].latency_ms)) / 1e3 < 2.1, "a round of 1 ms each, and not one more"


def test_a_race_takes_latencies_alone(tmp_path, images):
    models = {"slow": tiny_onnx(tmp_path / "a.onnx", width=16384), "fast": tiny_onnx(tmp_path / "b.onnx", width=8)}
    device = FakeDevice()
    found = race(TARGET, models, images, device=device, undecided=lambda measured: len(device.jobs) < 3)
    assert [job["tasks"] for job in device.jobs] == [["latency"]] * 3
    assert [job["meter"]["samples"] for job in device.jobs] == [120, 240, 480]
    assert len(found.models["slow"].latency_ms) == 18, "six blocks a round"
    real = race(TARGET, models, images, operators=True)
    assert real.models["slow"].operators["nodes"]
    assert real.environment["device"] == "local"
    assert measurements(real, "fast", "slow")["speedup_p50"].low > 2


def test_what_makes_numbers_doubtful_is_kept_with_them(net, images):
    device = FakeDevice(latency_ms={"a": list(np.linspace(1, 2, 120))})
    target = TARGET.model_copy(update={"meter": QUICK.model_copy(update={"blocks": 12})})
    found = measure(target, {"a": net}, images, device=device)
    assert "a: latency rose by" in found.environment["notes"][0]
