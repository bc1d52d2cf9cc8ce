import importlib.metadata
import platform
import re

import numpy as np
import pytest

from targets import probe
from targets.errors import InputError
from targets.measure import outputs
from targets.target import PROFILES, Target, ceilings, facts, int8_rules, load, shipped
from targets.testing import tiny_onnx


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_profile_loads_and_is_told(name):
    target = load(name)
    assert target.name == name
    assert target.summary
    text = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert name == "local" or "https://" in text, "each fact has its source"


def test_the_shipped_profiles():
    assert shipped() == ("arm64", "local", "x86_64_avx2", "x86_64_vnni")


def test_int8_rules_of_the_shipped_profiles():
    rules = {name: load(name).int8 for name in shipped()}
    assert (rules["x86_64_vnni"].activations, rules["x86_64_vnni"].reduce_range) == ("uint8", False)
    assert (rules["x86_64_avx2"].activations, rules["x86_64_avx2"].reduce_range) == ("uint8", True)
    assert (rules["arm64"].activations, rules["arm64"].symmetric_activations) == ("int8", True)
    assert all(rule.per_channel for rule in rules.values())


@pytest.mark.parametrize(
    ("machine", "flags", "profile"),
    [
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], "x86_64_vnni"),
        ("x86_64", ["avx2", "avx_vnni"], "x86_64_vnni"),
        ("AMD64", ["amx_int8"], "x86_64_vnni"),
        ("x86_64", ["avx2", "avx512f"], "x86_64_avx2"),
        ("x86_64", [], "x86_64_avx2"),
        ("aarch64", ["asimddp"], "arm64"),
        ("arm64", [], "arm64"),
    ],
)
def test_what_is_found_on_a_machine_is_what_its_profile_says(machine, flags, profile):
    found = int8_rules(machine, flags)
    assert found == {key: getattr(load(profile).int8, key) for key in found}


def test_local_is_this_machine():
    local, here = load("local"), probe.cpu()
    assert here["model"] in local.summary
    assert local.runtime.threads == 1
    expected = int8_rules(platform.machine(), here["flags"])
    assert local.int8.model_dump(include=set(expected)) == expected
    assert (local.opset, local.ir_version) == ceilings(importlib.metadata.version("onnxruntime"))


def test_the_installed_runtime_takes_the_ceilings(tmp_path):
    local = load("local")
    model = tiny_onnx(tmp_path / "a.onnx", opset=local.opset, ir_version=local.ir_version)
    assert outputs(local, model, np.ones((2, 3, 4, 4), np.float32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.12.1", (17, 8)), ("1.16.0", (19, 9)), ("1.17.3", (20, 9)), ("1.20.1", (21, 10)), ("1.32.0", (21, 10))],
)
def test_ceilings(version, expected):
    assert ceilings(version) == expected
    assert ceilings(version + ".dev20250101") == expected


def test_flags_of_an_arm_board_are_found():
    text = "processor\t: 0\nFeatures\t: fp asimd evtstrm asimddp\nCPU part\t: 0xd0b\n"
    found = probe.cpu(text)
    assert found["flags"] == ["asimddp"]
    assert found["model"] == "CPU part 0xd0b"


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(InputError) as caught:
        load("x86_vnni")
    assert str(caught.value) == (
        "no target is called 'x86_vnni'\n   help: did you mean 'x86_64_vnni'? See `attar targets`"
    )


# ---- a user's own


def write(folder, text, name="board.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return name


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


def test_extending_local_completes_it_from_this_machine(tmp_path):
    text = "extends: local\nint8: {activations: int8}\nmeter: {samples: 60}\n"
    target, local = load(write(tmp_path, text), tmp_path), load("local")
    assert target.int8.activations == "int8"
    assert target.int8.reduce_range == local.int8.reduce_range
    assert target.meter.samples == 60
    assert target.summary == local.summary


def test_faults_of_a_users_profile_have_lines(tmp_path):
    text = "extends: local\nopset: 12\nruntime:\n  thread: 2\nint8:\n  activations: int4\ndevice: usb\n"
    use = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load(use, tmp_path)
    shown = str(caught.value).replace(str(tmp_path) + "/", "")
    assert [line for line in shown.splitlines() if line.startswith("board")] == [
        "board.yaml:2: opset: 12 must be at least 13 and at most 30",
        "board.yaml:4: runtime.thread: unknown key",
        "board.yaml:6: int8.activations: 'int4' must be one of 'uint8' or 'int8'",
        "board.yaml:7: device: 'usb' must be one of 'local'",
    ]
    assert "   help: did you mean 'threads'? See `attar targets show local`" in shown


@pytest.mark.parametrize("value", ["rasberry", "[local]", "", "board.yaml"])
def test_extends_takes_a_shipped_name(tmp_path, value):
    use = write(tmp_path, f"name: x\nextends: {value}\n")
    with pytest.raises(InputError, match=r"board\.yaml:2: extends: no target is called .*\n.*\n   help: "):
        load(use, tmp_path)


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
