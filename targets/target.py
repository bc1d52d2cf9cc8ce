"""Target: one kind of place where a model runs, and what it charges and allows there.

A target is a YAML profile: the shipped ones are in `targets/profiles/`, a user's own lies beside the recipe and may
`extends:` a shipped one. The profile `local` is completed from the machine that reads it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from targets import probe
from targets.budget import Budget
from targets.documents import Frozen, read, validate
from targets.errors import Fault, InputError, nearest

__all__ = ["Int8Rules", "Meter", "Runtime", "Target", "facts", "load", "shipped"]

PROFILES = Path(__file__).with_name("profiles")


SLUG = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # names become folders


class Runtime(Frozen):
    """The engine that runs the model on the target."""

    provider: str = Field("CPUExecutionProvider", description="onnxruntime execution provider")
    options: dict[str, str] = Field(default_factory=dict, description="options of that provider")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="threads for one inference")


class Int8Rules(Frozen):
    """How int8 must look to be right and fast on the target."""

    activations: Literal["uint8", "int8"] = "uint8"
    per_channel: bool = Field(True, description="one weight scale per output channel")
    reduce_range: bool = Field(False, description="7-bit weights, where u8 x s8 products saturate 16 bits")
    symmetric_activations: bool = False
    op_types: tuple[str, ...] = Field(
        (), description="operators worth quantizing; empty: all that int8 kernels exist for"
    )


class Meter(Frozen):
    """How long and how often to measure."""

    warmup_s: Annotated[float, Field(ge=0, le=600)] = 0.3
    samples: Annotated[int, Field(ge=30, le=1_000_000)] = Field(600, description="latencies kept per model, at least")
    blocks: Annotated[int, Field(ge=3, le=1000)] = Field(12, description="turns that each model takes")
    max_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(60, description="bound on measuring one model")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(0.95, description="of every printed interval")
    throughput_batch: Annotated[int, Field(ge=1, le=4096)] = 32


class Target(Frozen):
    """One kind of hardware with its runtime, its rules and its default limits."""

    name: Annotated[str, Field(pattern=SLUG, max_length=100, description="letters, digits, - _ and .")]
    summary: str = ""
    device: Literal["local"] = Field("local", description="how the device is reached")
    machine: Literal["", "x86_64", "aarch64"] = Field("", description="kind of processor; empty: any")
    has_any: tuple[str, ...] = Field((), description="CPU flags of which the hardware has at least one")
    has_none: tuple[str, ...] = Field((), description="CPU flags that the hardware lacks")
    runtime: Runtime = Runtime()
    int8: Int8Rules = Int8Rules()
    opset: Annotated[int, Field(ge=13, le=30)] = Field(21, description="highest ONNX opset that the runtime takes")
    ir_version: Annotated[int, Field(ge=7, le=20)] = Field(10, description="highest ONNX IR version it takes")
    channel_multiple: Annotated[int, Field(ge=1, le=256)] = Field(1, description="channel counts are rounded to this")
    meter: Meter = Meter()
    budget: Budget = Budget()


def unlike(target: Target, machine: str, flags: Iterable[str]) -> str:
    """Why a processor is not the hardware that a target describes; empty if it is.

    Args:
        machine, flags: as `targets.probe.cpu` finds them.
    """
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    flags = set(flags)
    if target.machine and target.machine != here:
        return f"{target.name} is {target.machine} hardware, and this is {here}"
    if target.has_any and flags.isdisjoint(target.has_any):
        return f"{target.name} has {' or '.join(target.has_any)}, and this processor does not"
    if extra := flags & set(target.has_none):
        return f"{target.name} is without {', '.join(sorted(extra))}, and this processor has it"
    return ""


def shipped() -> tuple[str, ...]:
    """Names of the profiles that come with attar."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.yaml")))


def load(use: str, base: Path | None = None) -> Target:
    """A target by name or file.

    Args:
        use: a shipped profile's name, or the path of a user's .yaml file. A file may name a shipped profile with
            `extends:`; what the file says goes over it, key by key. Its `name` is the file's when it gives none.
        base: the folder that a relative path starts from; the working directory when left out.

    Raises:
        InputError: no such profile or file, or all that is wrong in the file.
    """
    if not use.endswith((".yaml", ".yml")):
        return Target(**_profile(use, _unknown(use)))
    path = (base or Path()) / use
    doc = read(path, kind="target profile", start="`attar targets detect` proposes one to start from")
    value = dict(doc.value)
    shown: dict[str, Any] = {"name": path.stem}
    if "extends" in value:
        unknown = _unknown(str(extended := value.pop("extends")))
        shown = _profile(extended, doc.fault(("extends",), unknown.what, unknown.help)) | shown
    return validate(doc, Target, _merged(shown, value), command="attar targets show local")


def facts(target: Target, fields: Iterable[str]) -> dict[str, Any]:
    """Plain JSON values of these fields of a target: what enters the key of a step that looks at them."""
    return target.model_dump(mode="json", include=set(fields))


def _unknown(name: str) -> Fault:
    what = f"no target is called {name!r}"
    return Fault(what, help=nearest(name, shipped(), command="attar targets"))


def _profile(name: Any, otherwise: Fault) -> dict[str, Any]:
    """Values of a shipped profile, `local` completed; `otherwise` is raised where there is none."""
    if name not in shipped():
        raise InputError(otherwise)
    value = read(PROFILES / f"{name}.yaml").value
    return _merged(_this_machine(), value) if name == "local" else dict(value)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key, mappings within mappings too; anything else is replaced."""
    both = dict(under)
    for key, value in over.items():
        mine = both.get(key)
        both[key] = _merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return both


def _this_machine() -> dict[str, Any]:
    """What the profile `local` leaves open."""
    found = probe.cpu()
    opset, ir_version = ceilings(_onnxruntime())
    flags = ", ".join(found["flags"]) or "no int8 instructions known"
    cores = f"{found['cores']} core" + ("s" if found["cores"] > 1 else "")
    return {
        "summary": f"this machine: {found['model']}, {cores} ({flags})",
        "int8": int8_rules(platform.machine(), found["flags"]),
        "opset": opset,
        "ir_version": ir_version,
    }


def int8_rules(machine: str, flags: Iterable[str]) -> dict[str, Any]:
    """The int8 rules of a processor, as the shipped profiles of its kind have them; the sources are there.

    Args:
        machine: as `platform.machine()` calls it. flags: as `targets.probe.cpu` finds them.
    """
    if machine.lower() in {"aarch64", "arm64"}:
        return {"activations": "int8", "symmetric_activations": True}
    vnni = not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(flags)
    narrow = machine.lower() in {"x86_64", "amd64", "x86", "i686"} and not vnni
    return {"activations": "uint8", "reduce_range": narrow}


# onnxruntime version -> opset and IR version: https://onnxruntime.ai/docs/reference/compatibility.html#onnx-opset-support
# The page ends at 1.20. Newer versions take at least what older ones took (same page, "Backwards compatibility").
_CEILINGS = {(1, 14): (18, 8), (1, 15): (19, 8), (1, 16): (19, 9), (1, 17): (20, 9), (1, 18): (21, 10)}


def ceilings(onnxruntime: str) -> tuple[int, int]:
    """(highest opset, highest IR version) that a version of onnxruntime is documented to take."""
    major, minor = (int(part) for part in onnxruntime.split(".")[:2])
    known = [row for since, row in _CEILINGS.items() if since <= (major, minor)]
    return known[-1] if known else (17, 8)  # 1.12


def _onnxruntime() -> str:
    """The installed version. Read from metadata: importing the runtime takes long, and is the probe's business."""
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime-directml"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise InputError("onnxruntime is not installed", help="pip install onnxruntime; see `attar doctor`")
