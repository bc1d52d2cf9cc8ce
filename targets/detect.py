"""Proposes a target profile for a machine, from what the machine says of itself: YAML text that a person can keep."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from targets.errors import InputError
from targets.hardware import DOCUMENTED, VNNI, ceilings, int8_rules, plain
from targets.measure import connect
from targets.target import Connection, Target, load, unlike

__all__ = ["machine", "nearest_profile", "propose"]

# Providers for which there is a profile, the most particular first: onnxruntime-gpu brings TensorRT and CUDA together.
_BY_PROVIDER = (
    ("QNNExecutionProvider", "qualcomm_htp"),
    ("CoreMLExecutionProvider", "apple_coreml"),
    ("TensorrtExecutionProvider", "server_gpu_tensorrt"),
    ("CUDAExecutionProvider", "server_gpu_cuda"),
    ("OpenVINOExecutionProvider", "openvino_cpu"),
    ("XnnpackExecutionProvider", "phone_arm64_xnnpack"),
)
# Boards by their names in the device tree, cores by their numbers in /proc/cpuinfo:
# https://github.com/gcc-mirror/gcc/blob/master/gcc/config/aarch64/aarch64-cores.def
_BY_MODEL = (
    (r"Raspberry Pi (4|400|Compute Module 4)\b|0xd08\b", "cortex_a72"),
    (r"Raspberry Pi (5|500|Compute Module 5)\b|0xd0b\b", "cortex_a76"),
)


_EXAMPLES = {"--device": "for example ssh://pi@raspberrypi.local", "--name": "for example pi4"}


def machine(device: str, name: str = "", python: str = "") -> tuple[Target, dict[str, Any]]:
    """Asks a machine what it is.

    Args:
        device: local, or ssh://[user@]host[:port].
        name: of the profile to be; made from the device when left out.
        python: the Python there that has onnxruntime.

    Returns:
        A target that only says how the machine is reached, and the machine's identity (see `targets.devices.Device`).

    Raises:
        InputError: device or name are no such thing.
        DeviceError: the device cannot be reached, or has no Python.
    """
    host = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"^ssh://([^@]*@)?|(:[0-9]+)?$", "", device)).strip("-._")
    name = name or ("my-device" if device == "local" else host or "device")
    try:
        target = Target(name=name, device=device, connection=Connection(python=python))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        option = f"--{wrong['loc'][0]}"
        what = wrong["msg"].removeprefix("Value error, ")
        raise InputError(f"{option}: {what}", help=_EXAMPLES.get(option, "")) from None
    return target, dict(connect(target).identity())


def nearest_profile(found: Mapping[str, Any]) -> str:
    """The shipped profile that a machine is nearest to; empty where none is.

    Args:
        found: as `Device.identity` gives it; "providers" may be missing.
    """
    kind, flags, model = plain(found["machine"]), set(found["flags"]), str(found["model"])
    for provider, name in _BY_PROVIDER:
        if provider in _providers(found):
            jetson = name == "server_gpu_tensorrt" and kind == "aarch64" and re.search("jetson|orin|tegra", model, re.I)
            return "jetson_orin_tensorrt" if jetson else name
    if kind == "aarch64":
        return next((name for pattern, name in _BY_MODEL if re.search(pattern, model)), "arm64")
    if kind != "x86_64":
        return ""
    return "x86_64_amx" if "amx_int8" in flags else "x86_64_avx2" if flags.isdisjoint(VNNI) else "x86_64_vnni"


def propose(target: Target, found: Mapping[str, Any]) -> str:
    """The text of a profile for a machine, each part with a word on where it comes from.

    Args:
        target: its name, and how it is reached.
        found: its identity; see `machine`.
    """
    parts = (_heading(target, found), _name(target, found), _base(found), _reach(target), _ceilings(found), _BUDGET)
    return "\n".join(line for part in parts for line in part) + "\n"


_BUDGET = (
    "# Limits that hold on this device unless a recipe says otherwise:",
    "# budget: {latency_p95_ms: 10, size_mb: 5}",
)


def _heading(target: Target, found: Mapping[str, Any]) -> Iterator[str]:
    runtime = found.get("onnxruntime") or "none: pip install onnxruntime numpy there"
    yield f"# Proposed by `attar targets detect` from what {target.device} says of itself:"
    yield f"#   processor    {_said(found['model'])} ({_said(found['machine'])}, {_cores(found)})"
    yield f"#   flags        {_said(', '.join(found['flags'])) or 'none that matter for int8'}"
    yield f"#   onnxruntime  {_said(runtime)}"
    yield f"#   providers    {_said(', '.join(_providers(found))) or 'none'}"
    if found.get("python"):
        yield f"#   Python       {_said(found['python'])}, numpy {_said(found.get('numpy') or 'none')}"


def _name(target: Target, found: Mapping[str, Any]) -> Iterator[str]:
    yield f"name: {_quoted(target.name)}"
    summary = f"{_said(found['model'])[:60]}, {_cores(found)}"
    yield f"summary: {_quoted(summary)}"


def _base(found: Mapping[str, Any]) -> Iterator[str]:
    near = nearest_profile(found)
    if not near:
        yield "# No shipped profile is near: state `int8` and `runtime` after a look at `attar targets show arm64`."
        return
    base, kind = load(near), plain(found["machine"])
    yield f"extends: {near}  # the nearest shipped profile; `attar targets show {near}` tells all that it brings"
    if base.runtime.provider != "CPUExecutionProvider":
        yield f"# onnxruntime there was built with {base.runtime.provider}; whether it works, only a run can tell."
    if why := unlike(base, kind, found["flags"]):
        yield f"# {why}: what it says of the processor is put right here:"
        yield f"machine: {_quoted(kind if kind in ('x86_64', 'aarch64') else '')}"
        yield "has_any: []"
        yield "has_none: []"
        rules = int8_rules(kind, found["flags"])
        other = {key: value for key, value in rules.items() if getattr(base.int8, key) != value}
        if other and base.runtime.provider in ("CPUExecutionProvider", "OpenVINOExecutionProvider"):
            yield f"int8: {json.dumps(other)}"


def _reach(target: Target) -> Iterator[str]:
    yield f"device: {_quoted(target.device)}"
    if connection := target.connection.model_dump(mode="json", exclude_defaults=True):
        yield f"connection: {json.dumps(connection, ensure_ascii=False)}"


def _ceilings(found: Mapping[str, Any]) -> Iterator[str]:
    runtime, near = str(found.get("onnxruntime", "")), nearest_profile(found)
    if not (parts := re.match(r"([0-9]{1,4})\.([0-9]{1,4})", runtime)):
        return
    opset, ir_version = ceilings(runtime)
    if near:
        opset, ir_version = min(opset, load(near).opset), min(ir_version, load(near).ir_version)
    if (int(parts[1]), int(parts[2])) > DOCUMENTED:
        last = ".".join(map(str, DOCUMENTED))
        yield f"# What onnxruntime {last} takes, the last that is documented; {_said(runtime)} takes at least as much:"
    else:
        yield f"# What onnxruntime {_said(runtime)} is documented to take:"
    yield f"opset: {opset}"
    yield f"ir_version: {ir_version}"


def _providers(found: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in found.get("providers") or ()]


def _cores(found: Mapping[str, Any]) -> str:
    return f"{found['cores']} core" + ("s" if found["cores"] != 1 else "")


def _quoted(text: str) -> str:
    """As YAML reads it back, whatever is in it; plain where it is a plain word."""
    plain_word = re.fullmatch(r"[a-z][a-z0-9_-]*", text) and text not in ("null", "true", "false")
    return text if plain_word else json.dumps(text, ensure_ascii=False)


def _said(text: Any) -> str:
    """One line that can be printed: a device may say anything."""
    return "".join(char if char.isprintable() else " " for char in str(text))[:300].strip()
