"""The driver of profiles, on this machine for real; a fake device only for runtimes that are not here."""

import onnx
import onnxruntime
import pytest
from profiled_graphs import convolutions, quantized, two_inputs
from sshd import Sshd

from targets.errors import InputError
from targets.operator_rows import operators
from targets.operators import findings, node_counts
from targets.profiling import profile
from targets.samples import measurements
from targets.source_graph import read
from targets.target import Meter, Runtime, Target
from targets.testing import FakeDevice, tiny_onnx

TARGET = Target(name="here", meter=Meter(energy_s=0, pin=False))


def test_two_models_in_turns(tmp_path):
    models = {"wide": convolutions(tmp_path / "a.onnx", 28), "narrow": convolutions(tmp_path / "b.onnx", 7)}
    told = []
    found = profile(TARGET, models, batches=[1, 4], threads=[1, 2], seconds=0.4, say=told.append)
    for samples in found.measured.models.values():
        assert len({len(block) for block in samples.latency_ms}) == 1
        assert len(samples.latency_ms) >= 3
        assert len(samples.session_ms) >= 1
        assert samples.peak_memory_mb[0] > 10
        assert samples.size_bytes > 1000
        assert samples.energy is None
    ran = operators(read(models["wide"]), found.measured.models["wide"].operators, 0.95)
    assert {op.source.name for op in ran if op.macs} == {"conv", "head"}
    assert [(s.batch, s.threads) for s in found.sweeps] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert found.sweeps[0].latency_ms["wide"] == found.measured.models["wide"].latency_ms
    assert all(set(sweep.latency_ms) == {"wide", "narrow"} for sweep in found.sweeps)
    assert (found.batch, found.threads) == (1, 1)
    assert found.shapes == {"wide": {"x": (1, 16, 28, 28)}, "narrow": {"x": (1, 16, 7, 7)}}
    assert found.settings["meter"]["max_seconds"] == pytest.approx(0.2)
    assert told == [
        "measuring 2 models in turns on here",
        "measuring batch 1, threads 2",
        "measuring batch 4, threads 1",
        "measuring batch 4, threads 2",
    ]


def test_over_a_real_ssh_connection(tmp_path):
    (tmp_path / "server").mkdir()
    server = Sshd(tmp_path / "server")
    try:
        board = server.target().model_copy(update={"meter": TARGET.meter})
        path = quantized(tmp_path / "a.onnx")
        found = profile(board, {"m": path}, batches=[1, 2], seconds=0.2)
    finally:
        server.stop()
    samples = found.measured.models["m"]
    assert found.measured.environment["device"] == board.device
    assert len(found.sweeps) == 2
    assert sum(map(len, samples.latency_ms)) >= 30
    assert "latency_p50_ms" in measurements(found.measured, "m")
    assert node_counts(path, "CPUExecutionProvider", samples.operators, samples.assignment) == {
        "fallback_nodes": 0,
        "float_int8_nodes": 0,
    }


def test_a_model_of_several_inputs(tmp_path):
    models = {"m": two_inputs(tmp_path / "a.onnx")}
    with pytest.raises(InputError, match="input 'ids' has the shape batchxlength") as raised:
        profile(TARGET, models)
    assert len(raised.value.faults) == 2
    found = profile(TARGET, models, {"ids": (2, 16)}, seconds=0.2)
    assert found.shapes["m"] == {"ids": (2, 16), "mask": (2, 16)}
    assert found.batch == 2
    assert found.sweeps == ()
    ran = {row["name"] for row in found.measured.models["m"].operators["nodes"]}
    assert {"look-up", "weigh"} <= ran


@pytest.mark.skipif(
    "AzureExecutionProvider" not in onnxruntime.get_available_providers(), reason="no provider that takes no node"
)
def test_a_forced_fallback_is_caught(tmp_path):
    """onnxruntime's Azure provider takes no ordinary node: all of them fall back to the CPU."""
    target = TARGET.model_copy(update={"runtime": Runtime(provider="AzureExecutionProvider")})
    path = convolutions(tmp_path / "a.onnx")
    samples = profile(target, {"m": path}, seconds=0.2).measured.models["m"]
    asked = "AzureExecutionProvider"
    count = node_counts(path, asked, samples.operators, samples.assignment)["fallback_nodes"]
    assert count >= 4
    (finding,) = findings(path, asked, samples.operators, samples.assignment)
    assert finding.what.startswith(f"{count} of {count} nodes did not run on {asked}: {count} on CPUExecutionProvider")


def test_a_model_without_a_batch_axis(tmp_path):
    path = convolutions(tmp_path / "a.onnx")
    model = onnx.load(path)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0))
    model.graph.output[0].name = "total"
    onnx.save(model, path)
    found = profile(TARGET, {"m": path}, seconds=0.2)
    assert found.artifacts["m"].outputs[0].shape == ()


@pytest.mark.parametrize(
    ("changes", "version", "told"),
    [
        ({"opset": 20}, "1.16.3", "uses opset 20, and the device's onnxruntime 1.16.3 takes at most 19"),
        ({"ir_version": 10}, "1.17.0", "uses IR version 10, and the device's onnxruntime 1.17.0 takes at most 9"),
        ({"opset": 20}, "1.18.0", ""),
        ({"opset": 22, "ir_version": 11}, "1.32.0", ""),  # the page that says what it takes ends before
        ({"opset": 20}, "", ""),  # it is not there: the probe will say so
    ],
)
def test_a_model_that_is_newer_than_the_devices_runtime(tmp_path, changes, version, told):
    path, device = tiny_onnx(tmp_path / "a.onnx", **changes), FakeDevice(facts={"onnxruntime": version})
    if told:
        with pytest.raises(InputError, match=told):
            profile(TARGET, {"m": path}, device=device)
        assert not device.jobs
    else:
        profile(TARGET, {"m": path}, device=device)
        assert device.jobs


def test_a_fixed_batch(tmp_path):
    models = {"m": tiny_onnx(tmp_path / "a.onnx", batch=3)}
    with pytest.raises(InputError, match=r"m fixes the batch in its inputs \(x 3x3x4x4\): --batch cannot change it"):
        profile(TARGET, models, batches=[1], device=FakeDevice())
    assert profile(TARGET, models, batches=[3], device=FakeDevice()).shapes == {"m": {"x": (3, 3, 4, 4)}}
    assert profile(TARGET, models, device=FakeDevice()).shapes == {"m": {"x": (3, 3, 4, 4)}}


def test_arrays_and_models_are_put_once(tmp_path):
    device = FakeDevice()
    models = {"a": tiny_onnx(tmp_path / "a.onnx"), "b": tiny_onnx(tmp_path / "b.onnx", width=8)}
    profile(TARGET, models, batches=[1, 8], device=device)
    first, last = device.jobs[0]["models"], device.jobs[-1]["models"]
    assert first["a"]["inputs"] == first["b"]["inputs"] == {"x": "input0.npy"}
    assert last["a"]["inputs"] == {"x": "input1.npy"}
    assert [m["file"] for m in first.values()] == [m["file"] for m in last.values()] == ["model0.onnx", "model1.onnx"]
    assert all(model["whole"] for model in first.values())


def test_too_many_settings(tmp_path):
    with pytest.raises(InputError, match="13 batches times 5 threads are more than 64 settings"):
        profile(TARGET, {"m": tiny_onnx(tmp_path / "a.onnx")}, batches=range(1, 14), threads=range(1, 6))


def test_the_meter_is_bounded_whatever_the_target_says(tmp_path):
    device = FakeDevice()
    slow = Target(name="slow", meter=Meter(warmup_s=5, max_seconds=1000, energy_s=60, samples=100_000))
    profile(slow, {"m": tiny_onnx(tmp_path / "a.onnx")}, seconds=2, device=device)
    meter = device.jobs[0]["meter"]
    assert (meter["warmup_s"], meter["max_seconds"], meter["energy_s"], meter["samples"]) == (0.1, 2, 1.0, 3000)
    assert device.jobs[0]["tasks"] == ["session", "latency", "operators", "energy"]
    assert device.jobs[1]["tasks"] == ["memory"]


def test_more_seconds_bring_more_latencies(tmp_path):
    device = FakeDevice()
    for seconds in (4, 20, 4000):
        profile(TARGET, {"m": tiny_onnx(tmp_path / f"{seconds}.onnx")}, seconds=seconds, device=device)
    assert [job["meter"]["samples"] for job in device.jobs[::2]] == [3000, 15_000, 100_000]
