"""What follows from a processor and a version of onnxruntime: int8 rules, ceilings, watts. The profile `local` is made
from it, and `attar targets detect` fills its proposal with it. Needs nothing but names: no device is asked here."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from targets.errors import InputError
from targets.probe import machine as this_machine

__all__ = ["DOCUMENTED", "PROVIDERS", "VNNI", "beyond", "ceilings", "int8_rules", "plain", "power_w", "this"]

VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")

# All names that onnxruntime 1.32 knows (`onnxruntime.get_all_providers()`), and those of other versions and of plug-ins
# that have a page in https://onnxruntime.ai/docs/execution-providers/.
PROVIDERS = (
    "ACLExecutionProvider",
    "ArmNNExecutionProvider",
    "AzureExecutionProvider",
    "CANNExecutionProvider",
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "DnnlExecutionProvider",
    "JsExecutionProvider",
    "MIGraphXExecutionProvider",
    "NnapiExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
    "OpenVINOExecutionProvider",
    "QNNExecutionProvider",
    "ROCMExecutionProvider",
    "RknpuExecutionProvider",
    "TensorrtExecutionProvider",
    "VSINPUExecutionProvider",
    "VitisAIExecutionProvider",
    "WebGpuExecutionProvider",
    "WebNNExecutionProvider",
    "XnnpackExecutionProvider",
)


def plain(machine: str) -> str:
    """A kind of processor in the words of profiles: x86_64 or aarch64; any other as it is, in small letters."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())


def int8_rules(machine: str, flags: Iterable[str]) -> dict[str, Any]:
    """The int8 rules of a processor, as the shipped profiles of its kind have them; the sources are there.

    Args:
        machine: as `platform.machine()` calls it. flags: as `targets.probe.machine.cpu` finds them.
    """
    if plain(machine) == "aarch64":
        return {"activations": "int8", "symmetric_activations": True}
    narrow = plain(machine) in {"x86_64", "x86", "i686"} and set(VNNI).isdisjoint(flags)
    return {"activations": "uint8", "reduce_range": narrow}


# onnxruntime version -> opset and IR version: https://onnxruntime.ai/docs/reference/compatibility.html#onnx-opset-support
# The page ends at 1.20. Newer versions take at least what older ones took (same page, "Backwards compatibility").
DOCUMENTED = (1, 20)
_CEILINGS = {(1, 14): (18, 8), (1, 15): (19, 8), (1, 16): (19, 9), (1, 17): (20, 9), (1, 18): (21, 10)}


def ceilings(onnxruntime: str) -> tuple[int, int]:
    """(highest opset, highest IR version) that a version of onnxruntime is documented to take; those of 1.12 for an
    older version, or one that cannot be read."""
    parts = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", onnxruntime)
    known = [row for since, row in _CEILINGS.items() if parts and since <= (int(parts[1]), int(parts[2]))]
    return known[-1] if known else (17, 8)


def beyond(onnxruntime: str, opset: int, ir_version: int) -> tuple[str, int, int] | None:
    """What a version of onnxruntime is known not to take: ("opset" or "IR version", what was asked, the most that is
    documented). None where it takes it, or where the documented table ends: newer versions tell themselves."""
    parts = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", onnxruntime)
    if not parts or (int(parts[1]), int(parts[2])) > DOCUMENTED:
        return None
    most = ceilings(onnxruntime)
    asked = zip(("opset", "IR version"), (opset, ir_version), most, strict=True)
    return next((row for row in asked if row[1] > row[2]), None)


def power_w(machine: str, flags: Iterable[str]) -> float | None:
    """Watts that one busy core draws above idle, for estimates: those of the shipped profile of its kind; None where
    the kind is not known. The sources are in the profiles."""
    if plain(machine) == "x86_64":
        return 3.0  # x86_64_vnni, x86_64_avx2
    if plain(machine) == "aarch64":
        return 1.5 if "asimddp" in flags else 0.85  # cortex_a76, cortex_a72
    return None


def this() -> dict[str, Any]:
    """What the profile `local` leaves open, as values of a profile."""
    found = this_machine.cpu()
    opset, ir_version = ceilings(_onnxruntime())
    flags = ", ".join(found["flags"]) or "no int8 instructions known"
    cores = f"{found['cores']} core" + ("s" if found["cores"] > 1 else "")
    return {
        "summary": f"this machine: {found['model']}, {cores} ({flags})",
        "int8": int8_rules(platform.machine(), found["flags"]),
        "opset": opset,
        "ir_version": ir_version,
        "energy": {"power_w": power_w(platform.machine(), found["flags"])},
    }


def _onnxruntime() -> str:
    """The installed version. Read from metadata: importing the runtime takes long, and is the probe's business."""
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime-directml"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise InputError("onnxruntime is not installed", help="pip install onnxruntime; see `attar doctor`")
