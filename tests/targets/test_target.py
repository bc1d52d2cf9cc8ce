import importlib.metadata
import platform
import re

import numpy as np
import pytest

from targets import hardware
from targets.errors import InputError
from targets.hardware import ceilings, int8_rules
from targets.measure import outputs
from targets.probe import machine
from targets.target import Target, facts, load, unlike
from targets.testing import tiny_onnx


@pytest.mark.parametrize(
    ("kind", "flags", "profile"),
    [
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], "x86_64_vnni"),
        ("x86_64", ["avx2", "avx_vnni"], "x86_64_vnni"),
        ("AMD64", ["amx_int8"], "x86_64_amx"),
        ("x86_64", ["avx2", "avx512f"], "x86_64_avx2"),
        ("x86_64", [], "x86_64_avx2"),
        ("aarch64", ["asimddp"], "cortex_a76"),
        ("aarch64", [], "cortex_a72"),
        ("arm64", [], "arm64"),
    ],
)
def test_what_is_found_on_a_machine_is_what_its_profile_says(kind, flags, profile):
    found = int8_rules(kind, flags)
    assert found == {key: getattr(load(profile).int8, key) for key in found}


def test_local_is_this_machine():
    local, here = load("local"), machine.cpu()
    assert here["model"] in local.summary
    assert local.runtime.threads == 1
    expected = int8_rules(platform.machine(), here["flags"])
    assert local.int8.model_dump(include=set(expected)) == expected
    assert (local.opset, local.ir_version) == ceilings(importlib.metadata.version("onnxruntime"))
    assert local.energy.power_w == hardware.power_w(platform.machine(), here["flags"])
    assert not unlike(local, here["machine"], here["flags"])


def test_the_installed_runtime_takes_the_ceilings(tmp_path):
    local = load("local")
    model = tiny_onnx(tmp_path / "a.onnx", opset=local.opset, ir_version=local.ir_version)
    assert outputs(local, {"a": model}, np.ones((2, 3, 4, 4), np.float32))["a"].shape == (2, 10)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.12.1", (17, 8)),
        ("nightly", (17, 8)),
        ("1.16.0", (19, 9)),
        ("1.17.3", (20, 9)),
        ("1.20.1", (21, 10)),
        ("1.32.0", (21, 10)),
    ],
)
def test_ceilings(version, expected):
    assert ceilings(version) == expected
    assert ceilings(version + ".dev20250101") == expected


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(InputError) as caught:
        load("x86_vnni")
    assert str(caught.value) == (
        "no target is called 'x86_vnni'\n   help: did you mean 'x86_64_vnni'? See `attar targets`"
    )


# ---- a user's own


def write(folder, text, name="board.yaml"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return name


def faults(folder, text):
    """What `load` says of this text, without the folder."""
    with pytest.raises(InputError) as caught:
        load(write(folder, text), folder)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_profile_beside_the_recipe(tmp_path):
    use = write(tmp_path, "summary: mine\nruntime: {threads: 2}\nbudget: {size_mb: 1}\n")
    target = load(use, tmp_path)
    assert (target.name, target.summary, target.runtime.threads, target.budget.size_mb) == ("board", "mine", 2, 1)
    assert load(str(tmp_path / use)) == target


def test_extends_merges_deeply(tmp_path):
    text = "name: old_pc\nextends: x86_64_avx2\nint8: {per_channel: false}\nruntime: {options: {a: b}}\n"
    target, under = load(write(tmp_path, text), tmp_path), load("x86_64_avx2")
    assert target.name == "old_pc"
    assert target.int8 == under.int8.model_copy(update={"per_channel": False})
    assert target.runtime == under.runtime.model_copy(update={"options": {"a": "b"}})
    assert target.opset == under.opset


def test_a_profile_that_extends_is_called_by_its_file(tmp_path):
    assert load(write(tmp_path, "extends: cortex_a72\n"), tmp_path).name == "board"


def test_extending_local_completes_it_from_this_machine(tmp_path):
    text = "extends: local\nint8: {activations: int8}\nmeter: {samples: 60}\n"
    target, local = load(write(tmp_path, text), tmp_path), load("local")
    assert target.int8.activations == "int8"
    assert target.int8.reduce_range == local.int8.reduce_range
    assert target.meter.samples == 60
    assert target.summary == local.summary


def test_another_provider_starts_without_the_options_of_the_one_extended(tmp_path):
    text = "extends: server_gpu_tensorrt\nruntime: {provider: CUDAExecutionProvider, options: {device_id: '1'}}\n"
    runtime = load(write(tmp_path, text), tmp_path).runtime
    assert (runtime.options, runtime.fallback) == ({"device_id": "1"}, ())
    text = "extends: server_gpu_tensorrt\nruntime: {options: {device_id: '1'}}\n"
    runtime = load(write(tmp_path, text), tmp_path).runtime
    assert (runtime.options["trt_int8_enable"], runtime.options["device_id"]) == ("True", "1")
    assert runtime.fallback == ("CUDAExecutionProvider",)


def test_extends_takes_another_file_by_its_path_from_there(tmp_path):
    write(tmp_path / "shared", "extends: cortex_a72\nruntime: {threads: 2}\nsummary: base\n", "base.yaml")
    write(tmp_path / "shared", "extends: base.yaml\nruntime: {threads: 3}\n", "pi.yaml")
    target = load(write(tmp_path, "extends: shared/pi.yaml\nchannel_multiple: 8\n"), tmp_path)
    assert (target.name, target.summary, target.runtime.threads) == ("board", "base", 3)
    assert (target.channel_multiple, target.int8.activations) == (8, "int8")


def test_paths_of_keys_start_from_the_file_that_names_them(tmp_path):
    write(tmp_path / "shared", "connection: {identity_file: keys/pi, known_hosts: /etc/hosts_of_pi}\n", "base.yaml")
    connection = load(write(tmp_path, "extends: shared/base.yaml\n"), tmp_path).connection
    assert connection.identity_file == str(tmp_path / "shared" / "keys" / "pi")
    assert connection.known_hosts == "/etc/hosts_of_pi"


def test_a_circle_of_files_is_a_fault(tmp_path):
    write(tmp_path, "extends: board.yaml\n", "base.yaml")
    expected = (
        "base.yaml:1: extends: goes round in a circle: board.yaml -> base.yaml -> board.yaml\n"
        "    1 | extends: board.yaml\n   help: extend a shipped profile: `attar targets`"
    )
    assert faults(tmp_path, "extends: base.yaml\n") == expected
    assert "goes round in a circle: board.yaml -> board.yaml" in faults(tmp_path, "extends: ./board.yaml\n")


def test_a_fault_in_what_is_extended_is_shown_where_it_stands(tmp_path):
    write(tmp_path, "name: base\nopset: 12\n", "base.yaml")
    assert faults(tmp_path, "extends: base.yaml\nopset: 20\n").startswith(
        "base.yaml:2: opset: 12 must be at least 13 and at most 30\n"
    )


def test_extends_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path, "name: base\n", "base.yaml")
    shown = faults(tmp_path, "name: x\nextends: bsae.yaml\n")
    assert shown.startswith("board.yaml:2: extends: there is no file bsae.yaml\n")
    assert "help: did you mean 'base.yaml'" in shown
    assert "there is no file no/such.yaml" in faults(tmp_path, "extends: no/such.yaml\n")


@pytest.mark.parametrize("value", ["rasberry", "/etc/passwd", "../x"])
def test_extends_an_unknown_name(tmp_path, value):
    shown = faults(tmp_path, f"name: x\nextends: {value}\n")
    assert re.match(r"board\.yaml:2: extends: no target is called .*\n.*\n   help: ", shown)


@pytest.mark.parametrize(("value", "shown"), [("[local]", '["local"]'), ("", "null"), ("3", "3"), ("{a: b}", "{")])
def test_extends_takes_text(tmp_path, value, shown):
    expected = f"board.yaml:2: extends: {shown}"
    found = faults(tmp_path, f"name: x\nextends: {value}\n")
    assert found.startswith(expected)
    assert "must be a shipped profile's name, or the path of another .yaml file" in found


def test_faults_of_a_users_profile_have_lines(tmp_path):
    shown = faults(
        tmp_path,
        "extends: local\nopset: 12\nruntime:\n  thread: 2\nint8:\n  activations: int4\ndevice: usb\n"
        "connection:\n  port: 22\n  retries: -1\nenergy: {power_w: 0}\n",
    )
    assert [line for line in shown.splitlines() if line.startswith("board")] == [
        "board.yaml:2: opset: 12 must be at least 13 and at most 30",
        "board.yaml:4: runtime.thread: unknown key",
        "board.yaml:6: int8.activations: 'int4' must be one of 'uint8' or 'int8'",
        "board.yaml:7: device: 'usb' must be local or ssh://[user@]host[:port]",
        "board.yaml:9: connection.port: unknown key",
        "board.yaml:10: connection.retries: -1 must be at least 0 and at most 20",
        "board.yaml:11: energy.power_w: 0 must be above 0 and at most 10000",
    ]
    assert "   help: did you mean 'threads'? See `attar targets show local`" in shown


@pytest.mark.parametrize(
    "device",
    ["local", "ssh://pi4", "ssh://pi@pi4.local", "ssh://pi@10.0.0.7:2222", "ssh://[fe80::1]:22", "ssh://_u.x@h:65535"],
)
def test_addresses(tmp_path, device):
    assert load(write(tmp_path, f"device: {device}\n"), tmp_path).device == device


@pytest.mark.parametrize(
    "device",
    ["pi4", "ssh://", "ssh://-oProxyCommand=x", "ssh://-x@h", "ssh://h:0", "ssh://h:65536", "ssh://h/x", "ssh://a b"],
)
def test_what_is_no_address(tmp_path, device):
    shown = faults(tmp_path, f"device: '{device}'\n")
    assert shown.startswith(f"board.yaml:1: device: '{device}' must be local or ssh://[user@]host[:port]\n")
    assert "help: how the device is reached" in shown


def test_a_password_has_no_place_in_an_address(tmp_path):
    shown = faults(tmp_path, "device: ssh://pi:secret@pi4\n")
    assert shown.startswith("board.yaml:1: device: no password is taken, here or anywhere: use a key, or an agent")


@pytest.mark.parametrize(
    ("provider", "shown"),
    [
        ("CUDAExecutionProvidr", ": did you mean 'CUDAExecutionProvider'?"),
        ("TensorRTExecutionProvider", ": did you mean 'TensorrtExecutionProvider'?"),
        ("cuda", ": did you mean 'CUDAExecutionProvider'?"),
        ("OpenVino", ": did you mean 'OpenVINOExecutionProvider'?"),
        ("Qwertz", ""),
    ],
)
def test_an_unknown_provider_is_a_fault_with_the_nearest(tmp_path, provider, shown):
    found = faults(tmp_path, f"runtime:\n  provider: {provider}\n")
    expected = f"board.yaml:2: runtime.provider: {provider!r} is no execution provider of onnxruntime{shown}\n"
    assert found.startswith(expected)


def test_an_unknown_fallback_is_a_fault(tmp_path):
    found = faults(tmp_path, "runtime:\n  fallback: [CUDAExecutionProvider, CPU_EP]\n")
    assert found.startswith("board.yaml:2: runtime.fallback[1]: 'CPU_EP' is no execution provider of onnxruntime")


def test_a_name_must_do_for_a_folder(tmp_path):
    found = faults(tmp_path, "name: ../up\n")
    assert found.startswith("board.yaml:1: name: '../up' must be letters, digits, - _ and .")
    with pytest.raises(InputError, match=r"name: 'a b' must be letters"):
        load(write(tmp_path, "extends: local\n", "a b.yaml"), tmp_path)


def test_a_missing_profile_names_its_neighbours(tmp_path):
    write(tmp_path, "name: x\n")
    with pytest.raises(InputError, match=re.escape("bord.yaml: no such file\n   help: did you mean 'board.yaml'?")):
        load("bord.yaml", tmp_path)
    with pytest.raises(InputError, match="give the path of a target profile file; `attar targets detect` proposes one"):
        load("no/bord.yaml", tmp_path)


def test_an_empty_profile_says_how_to_start(tmp_path):
    with pytest.raises(InputError, match=r"is empty\n   help: `attar targets detect` proposes one to start from"):
        load(write(tmp_path, ""), tmp_path)


def test_facts_are_plain_and_only_what_was_asked_for():
    found = facts(load("arm64"), ("int8", "opset"))
    assert found == {
        "int8": {
            "activations": "int8",
            "per_channel": True,
            "reduce_range": False,
            "symmetric_activations": True,
            "op_types": [],
        },
        "opset": 21,
    }
    assert facts(load("arm64"), ()) == {}


def test_a_target_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Target(name="a").opset = 3
