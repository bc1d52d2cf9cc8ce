"""Arm processors, emulated: what a model answers there, and where its operators run. Never how long they take."""

import os
from pathlib import Path

import int8_nets
import pytest
from arm64 import CPUS, userland
from device_tools import emptied, gone
from profiled_graphs import quantized
from sshd import Sshd

from targets.detect import nearest_profile
from targets.errors import DeviceError
from targets.measure import connect, outputs
from targets.operators import findings, node_counts
from targets.profiling import profile
from targets.target import Connection, Meter, Target, load, unlike

pytestmark = pytest.mark.slow

CPU = "CPUExecutionProvider"
METER = Meter(samples=30, blocks=3, warmup_s=0, max_seconds=1, energy_s=0)


@pytest.fixture(scope="module")
def arm(request, tmp_path_factory):
    """The userland, kept in ATTAR_ARM64_ROOT, or else in pytest's own cache."""
    given, cache = os.environ.get("ATTAR_ARM64_ROOT"), getattr(request.config, "cache", None)
    folder = Path(given) if given else cache.mkdir("arm64") if cache else tmp_path_factory.mktemp("arm64")
    folder.mkdir(parents=True, exist_ok=True)
    return userland(folder.resolve())


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    return int8_nets.make(tmp_path_factory.mktemp("nets"))


def board(python):
    return Target(name="board", connection=Connection(python=python), meter=METER)


@pytest.mark.parametrize(
    ("cpu", "flags", "profiles", "nearest"),
    [
        ("cortex-a72", [], {"arm64", "cortex_a72"}, "cortex_a72"),
        ("cortex-a76", ["asimddp"], {"arm64", "cortex_a76"}, "cortex_a76"),
        ("neoverse-n1", ["asimddp"], {"arm64", "cortex_a76"}, "arm64"),
    ],
)
def test_who_it_says_it_is(arm, tmp_path, cpu, flags, profiles, nearest):
    found = connect(board(arm.python(tmp_path, cpu))).identity()
    assert found["machine"] == "aarch64"
    assert found["flags"] == flags
    assert found["model"] == f"CPU part {CPUS[cpu][0]}"
    assert found["python"].startswith("3.11.")
    assert found["numpy"]
    assert found["onnxruntime"] == connect(Target(name="here")).identity()["onnxruntime"]
    assert CPU in found["providers"]
    kinds = ("arm64", "cortex_a72", "cortex_a76", "phone_arm64_xnnpack", "x86_64_avx2", "x86_64_vnni")
    assert {name for name in kinds if not unlike(load(name), found["machine"], found["flags"])} == profiles
    assert nearest_profile(found) == nearest


@pytest.mark.parametrize("cpu", CPUS)
def test_the_same_answers_as_on_this_processor(arm, nets, tmp_path, cpu):
    answers = outputs(board(arm.python(tmp_path, cpu)), nets.models, nets.inputs)
    assert set(answers) == {"float", "u8s8", "s8s8"}
    nets.check(answers)


@pytest.mark.parametrize("cpu", ["cortex-a72", "neoverse-n1"])
def test_where_operators_run(arm, nets, tmp_path, cpu):
    """Every int8 node in int8, for either sign of activations; and the gate sees one that is not."""
    wrong = quantized(tmp_path / "wrong.onnx", weight="uint8", activation="int8")
    target = board(arm.python(tmp_path, cpu))
    models = {**nets.int8(), "wrong": wrong}
    got = profile(target, models, seconds=0.5).measured
    assert got.environment["cpu"]["machine"] == "aarch64"
    assert "aarch64" in got.environment["platform"]
    for name in nets.int8():
        samples = got.models[name]
        assert set(samples.assignment) == {CPU}
        assert node_counts(models[name], CPU, samples.operators, samples.assignment) == {
            "fallback_nodes": 0,
            "float_int8_nodes": 0,
        }
        assert "QLinearConv" in {node["op_type"] for node in samples.operators["nodes"]}
    told = findings(wrong, CPU, got.models["wrong"].operators, got.models["wrong"].assignment)
    assert [finding.kind for finding in told] == ["float_int8"]
    assert "conv" in told[0].nodes


def test_behind_a_real_ssh_server(arm, nets, tmp_path):
    python = arm.python(tmp_path, "cortex-a72")
    (tmp_path / "sshd").mkdir()
    server = Sshd(tmp_path / "sshd")
    try:
        target = server.target(python=python)
        device = connect(target)
        assert (device.identity()["machine"], device.identity()["flags"]) == ("aarch64", [])
        nets.check(outputs(target, nets.int8(), nets.inputs, device))
        assert gone(python), "nothing is left running there"
        assert emptied(server.cache / "work")
    finally:
        server.stop()


def test_a_crash_there_is_told(arm, nets, tmp_path):
    """The import of onnxruntime crashes where no Arm processor is described."""
    python = arm.python(tmp_path, "cortex-a72")
    (tmp_path / "cortex-a72/proc/cpuinfo").write_text("processor\t: 0\n")
    target = board(python)
    found = connect(target).identity()
    if found["onnxruntime"]:
        pytest.skip("this qemu writes /proc/cpuinfo itself")
    assert (found["machine"], found["python"][:5]) == ("aarch64", "3.11.")
    with pytest.raises(DeviceError, match="the probe was killed by SIGSEGV and gave no answer"):
        outputs(target, {"s8s8": nets.models["s8s8"]}, nets.inputs)
