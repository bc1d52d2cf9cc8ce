"""The shipped profiles: they load, every fact has its source, and they say what the sources say."""

import re

import onnxruntime
import pytest

from stages.vendors.ort_quantizer import operators
from targets import hardware
from targets.budget import METRICS
from targets.target import PROFILES, load, shipped, unlike

NEED_NO_SOURCE = {"name", "summary", "device", "machine"}
ACCELERATORS = {
    "apple_coreml": "CoreMLExecutionProvider",
    "jetson_orin_tensorrt": "TensorrtExecutionProvider",
    "qualcomm_htp": "QNNExecutionProvider",
    "server_gpu_cuda": "CUDAExecutionProvider",
    "server_gpu_tensorrt": "TensorrtExecutionProvider",
}


def told(text):
    """{top-level key: its lines, and the comments above it}; a key right below another shares those of both."""
    found, comments, last = {}, [], "key"
    for line in text.splitlines():
        kind = "comment" if line.startswith("#") else "inner" if line.startswith(" ") else "key"
        if kind == "comment":
            comments = [*comments, line] if last == "comment" else [line]
        elif kind == "key":
            key = line.partition(":")[0]
            found[key] = [*comments, line]
        else:
            found[key].append(line)
            comments = []
        last = kind
    return {key: "\n".join(lines) for key, lines in found.items()}


def sourced(block):
    return re.search(r"https://\S+|\b[Mm]easured\b", "\n".join(re.findall(r"#.*", block))) is not None


def test_the_rule_on_sources_can_fail():
    text = "# see https://a.b\nname: x\nruntime:\n  threads: 1  # measured\nint8:\n  # why\n  activations: int8\n"
    blocks = told(text + "opset: 21\n# Measured: here\nmeter:\n  samples: 60\n")
    assert sourced(blocks["runtime"])
    assert not sourced(blocks["int8"])
    assert not sourced(blocks["opset"])
    assert sourced(blocks["meter"])
    assert not sourced("a: https://not.in/a/comment")


@pytest.mark.parametrize("name", shipped())
def test_each_fact_has_its_source(name):
    text = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8")
    assert re.search(rf"^#   attar .*\b{name}\b", text, re.M), "it opens with a command to use it"
    body = text[text.index("\nname:") + 1 :]
    without = {key for key, block in told(body).items() if not sourced(block)} - NEED_NO_SOURCE
    assert not without, f"no source in the comments of {sorted(without)}"


@pytest.mark.parametrize("name", shipped())
def test_each_profile_says_what_every_profile_must(name):
    target, stated = load(name), told((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert target.name == name
    assert len(target.summary) >= 20
    assert target.device == "local"
    assert {"provider", "threads"} <= set(re.findall(r"^  (\w+):", stated["runtime"], re.M))
    if name != "local":
        assert len(target.summary) <= 57, "one line of a table 80 columns wide"
        rules = set(re.findall(r"^  (\w+):", stated["int8"], re.M))
        assert {"activations", "per_channel", "reduce_range", "symmetric_activations"} <= rules
        assert {"opset", "ir_version"} <= set(stated)
    assert operators(target.int8), "all operators that it names can be quantized"
    assert hardware.ceilings("1.18") >= (target.opset, target.ir_version)


def test_all_kinds_are_there():
    assert set(shipped()) == {
        "apple_coreml",
        "arm64",
        "cortex_a72",
        "cortex_a76",
        "jetson_orin_tensorrt",
        "local",
        "openvino_cpu",
        "phone_arm64_xnnpack",
        "qualcomm_htp",
        "server_gpu_cuda",
        "server_gpu_tensorrt",
        "x86_64_amx",
        "x86_64_avx2",
        "x86_64_vnni",
    }


def test_providers():
    found = {name: load(name).runtime for name in shipped()}
    assert {name: found[name].provider for name in ACCELERATORS} == ACCELERATORS
    assert found["jetson_orin_tensorrt"].fallback == found["server_gpu_tensorrt"].fallback == ("CUDAExecutionProvider",)
    assert {name for name in found if found[name].fixed_shapes} == {"qualcomm_htp"}
    assert found["openvino_cpu"].options == {"device_type": "CPU", "num_of_threads": "1"}
    others = set(found) - set(ACCELERATORS) - {"openvino_cpu", "phone_arm64_xnnpack"}
    assert {found[name].provider for name in others} == {"CPUExecutionProvider"}


def test_the_list_of_providers_is_whole():
    assert set(onnxruntime.get_all_providers()) <= set(hardware.PROVIDERS)
    assert list(hardware.PROVIDERS) == sorted(hardware.PROVIDERS)


def test_int8_rules():
    rules = {name: load(name).int8 for name in shipped()}
    assert {name for name, rule in rules.items() if rule.reduce_range} - {"local"} == {"x86_64_avx2"}
    unsigned = {name for name, rule in rules.items() if rule.activations == "uint8"} - {"local"}
    assert unsigned == {"x86_64_vnni", "x86_64_avx2", "x86_64_amx", "openvino_cpu", "qualcomm_htp"}
    assert all(rules[name].symmetric_activations for name in ("jetson_orin_tensorrt", "server_gpu_tensorrt"))
    assert {name for name, rule in rules.items() if not rule.per_channel} == {"qualcomm_htp"}
    assert rules["phone_arm64_xnnpack"].op_types == ("Conv", "MaxPool", "AveragePool", "Softmax")


def test_default_budgets_surprise_nobody():
    limits = {name: load(name).budget.model_dump(exclude_none=True) for name in shipped()}
    assert {name for name, limit in limits.items() if limit} == {*ACCELERATORS, "openvino_cpu"}
    assert all(limits[name]["fallback_nodes"] == 0 for name in (*ACCELERATORS, "openvino_cpu"))
    gates = {"fallback_nodes", "float_int8_nodes"}
    assert all(set(limit) <= gates for limit in limits.values()), "no default limit on what a user has to choose"
    assert gates <= set(METRICS)


@pytest.mark.parametrize(
    ("machine", "flags", "fits"),
    [
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], {"x86_64_vnni", "openvino_cpu"}),
        ("x86_64", ["avx2", "avx512_vnni", "amx_int8"], {"x86_64_vnni", "x86_64_amx", "openvino_cpu"}),
        ("x86_64", ["avx2", "avx512f"], {"x86_64_avx2"}),
        ("aarch64", [], {"arm64", "cortex_a72"}),
        ("aarch64", ["asimddp"], {"arm64", "cortex_a76"}),
        ("aarch64", ["asimddp", "i8mm", "sve"], {"arm64", "phone_arm64_xnnpack"}),
    ],
)
def test_which_processors_the_cpu_profiles_are_for(machine, flags, fits):
    cpus = set(shipped()) - set(ACCELERATORS) - {"local"}
    assert {name for name in cpus if not unlike(load(name), machine, flags)} == fits


def test_estimates_of_power():
    watts = {name: load(name).energy.power_w for name in shipped()}
    assert watts["cortex_a72"] < watts["cortex_a76"] < watts["x86_64_vnni"]
    assert hardware.power_w("x86_64", []) == watts["x86_64_avx2"] == watts["x86_64_vnni"] == watts["openvino_cpu"]
    assert hardware.power_w("arm64", ["asimddp"]) == watts["cortex_a76"]
    assert hardware.power_w("aarch64", []) == watts["cortex_a72"]
    assert hardware.power_w("riscv64", []) is None
    assert all(watts[name] is None for name in ACCELERATORS), "a core's watts say nothing of an accelerator's"
    assert load("jetson_orin_tensorrt").energy.rails == ("VDD_IN", "VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
