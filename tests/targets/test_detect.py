"""`attar targets detect`: what a machine says of itself becomes a profile that loads."""

import subprocess
import sys

import pytest
import yaml

from targets.detect import machine, nearest_profile, propose
from targets.errors import InputError
from targets.target import Connection, Target, load, unlike

CPU = ["AzureExecutionProvider", "CPUExecutionProvider"]
GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def found(kind="x86_64", flags=(), model="a box", providers=CPU, onnxruntime="1.32.0"):
    python = {"python": "3.11.2", "numpy": "2.4.0"}
    cpu = {"model": model, "machine": kind, "cores": 4, "flags": list(flags)}
    return {**cpu, **python, "onnxruntime": onnxruntime, "providers": providers}


MACHINES = {
    "x86_64_vnni": found(flags=["avx2", "avx512_vnni"]),
    "x86_64_amx": found(flags=["avx2", "avx512_vnni", "amx_int8"]),
    "x86_64_avx2": found("AMD64", ["avx2", "avx512f"]),
    "cortex_a72": found("aarch64", model="Raspberry Pi 4 Model B Rev 1.4"),
    "cortex_a76": found("aarch64", ["asimddp"], "Raspberry Pi 5 Model B Rev 1.0"),
    "arm64": found("arm64", ["asimddp", "i8mm", "sve"], "CPU part 0xd40"),
    "phone_arm64_xnnpack": found("aarch64", ["asimddp", "i8mm"], providers=["XnnpackExecutionProvider", *CPU]),
    "openvino_cpu": found(flags=["avx2", "avx_vnni"], providers=["OpenVINOExecutionProvider", "CPUExecutionProvider"]),
    "server_gpu_tensorrt": found(flags=["avx2"], providers=GPU),
    "server_gpu_cuda": found(flags=["avx2"], providers=GPU[1:]),
    "jetson_orin_tensorrt": found("aarch64", ["asimddp"], "NVIDIA Jetson Orin NX Engineering Reference", GPU),
    "qualcomm_htp": found("aarch64", ["asimddp"], providers=["QNNExecutionProvider", "CPUExecutionProvider"]),
    "apple_coreml": found("arm64", providers=["CoreMLExecutionProvider", "CPUExecutionProvider"]),
}


def loaded(folder, text):
    (folder / "board.yaml").write_text(text, encoding="utf-8")
    return load("board.yaml", folder)


@pytest.mark.parametrize("name", MACHINES)
def test_each_kind_of_machine_gets_its_profile(tmp_path, name):
    identity = MACHINES[name]
    assert nearest_profile(identity) == name
    target, base = loaded(tmp_path, propose(Target(name="board-1"), identity)), load(name)
    assert (target.name, target.summary) == ("board-1", f"{identity['model']}, 4 cores")
    assert (target.runtime, target.int8, target.budget) == (base.runtime, base.int8, base.budget)
    assert (target.opset, target.ir_version) == (21, 10)
    assert not unlike(target, identity["machine"], identity["flags"])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi 400 Rev 1.0", "cortex_a72"),
        ("Raspberry Pi Compute Module 4 Rev 1.1", "cortex_a72"),
        ("Raspberry Pi Compute Module 5 Rev 1.0", "cortex_a76"),
        ("Raspberry Pi 3 Model B", "arm64"),
        ("CPU part 0xd08", "cortex_a72"),
        ("CPU part 0xd0b", "cortex_a76"),
    ],
)
def test_boards_and_cores_by_name(model, name):
    assert nearest_profile(found("aarch64", model=model)) == name


def test_the_machine_is_told_in_the_comments():
    text = propose(Target(name="a", device="ssh://pi@pi4"), MACHINES["cortex_a72"])
    for part in (
        "ssh://pi@pi4 says",
        "Raspberry Pi 4 Model B Rev 1.4 (aarch64, 4 cores)",
        "1.32.0",
        *CPU,
        "numpy 2.4.0",
    ):
        assert part in text
    assert "whether it works, only a run can tell" in propose(Target(name="a"), MACHINES["server_gpu_cuda"])


def test_how_a_device_is_reached_is_kept(tmp_path):
    connection = Connection(python="/home/pi/a b/python", identity_file="/keys/pi", retries=5)
    reached = Target(name="pi4", device="ssh://pi@pi4:2222", connection=connection)
    target = loaded(tmp_path, propose(reached, MACHINES["cortex_a72"]))
    assert (target.device, target.connection) == (reached.device, reached.connection)


def test_ceilings_are_those_of_the_runtime_that_is_there(tmp_path):
    target = loaded(tmp_path, propose(Target(name="a"), found("aarch64", onnxruntime="1.16.3")))
    assert (target.opset, target.ir_version) == (19, 9)


def test_a_machine_without_onnxruntime_still_gets_a_profile(tmp_path):
    text = propose(Target(name="a"), {**found("aarch64", onnxruntime="", providers=[]), "numpy": ""})
    assert "none: pip install onnxruntime numpy there" in text
    assert loaded(tmp_path, text).int8 == load("arm64").int8


@pytest.mark.parametrize("providers", [CPU, ["OpenVINOExecutionProvider", "CPUExecutionProvider"]])
def test_hardware_that_its_nearest_profile_is_not_for(tmp_path, providers):
    identity = found(flags=["avx2"] if len(providers[0]) > 22 else [], providers=providers)
    target = loaded(tmp_path, propose(Target(name="a"), identity))
    assert not unlike(target, "x86_64", identity["flags"])
    assert target.int8.reduce_range, "without VNNI u8 x s8 saturates, in whatever runtime"


def test_a_kind_that_no_profile_is_near_to(tmp_path):
    text = propose(Target(name="a"), found("riscv64"))
    assert nearest_profile(found("riscv64")) == ""
    assert "No shipped profile is near" in text
    assert loaded(tmp_path, text).runtime.provider == "CPUExecutionProvider"


def test_a_device_cannot_write_into_the_profile(tmp_path):
    evil = 'x\nbudget: {size_mb: 1}\n# "\u2028\x1b[31m\\'
    identity = {**found("aarch64", model=evil), "numpy": evil, "python": evil, "onnxruntime": f"1.18\n{evil}"}
    identity |= {"flags": [f"a\n{evil}"], "providers": [f"{evil}\nopset: 13"]}
    text = propose(Target(name="a"), identity)
    assert "\x1b" not in text
    assert loaded(tmp_path, text).budget.size_mb is None
    assert set(yaml.safe_load(text)) == {"name", "summary", "extends", "device", "opset", "ir_version"}


@pytest.mark.parametrize("name", ["null", "true", "10", "1e3", "a.b", "A"])
def test_any_name_that_a_target_may_have_survives(tmp_path, name):
    assert loaded(tmp_path, propose(Target(name=name), found())).name == name


def test_this_machine():
    target, identity = machine("local")
    assert (target.name, target.device) == ("my-device", "local")
    assert {"model", "machine", "cores", "flags", "python", "numpy", "onnxruntime", "providers"} <= set(identity)
    assert "CPUExecutionProvider" in identity["providers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("usb",), r"--device: 'usb' must be local or ssh://\[user@\]host\[:port\]"),
        (("ssh://a:b@c",), "--device: no password is taken"),
        (("local", "a b"), "--name: 'a b' must be letters, digits"),
    ],
)
def test_unusable_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        machine(*arguments)


def test_the_command_writes_a_file_that_loads(tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "targets"]
    done = subprocess.run([*command, "detect", "--name", "mine"], capture_output=True, text=True, check=True)
    target = loaded(tmp_path, done.stdout)
    assert (target.name, target.int8) == ("mine", load("local").int8)
    assert done.stderr == ""
    shown = subprocess.run([*command, "show", str(tmp_path / "board.yaml")], capture_output=True, text=True, check=True)
    assert yaml.safe_load(shown.stdout) == target.model_dump(mode="json")


def test_the_list_of_targets_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", "targets"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("jetson_orin_tensorrt  NVIDIA Jetson Orin") for line in lines)
