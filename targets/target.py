"""Target: one kind of place where a model runs, and what it charges and allows there.

A target is a YAML profile: the shipped ones are in `targets/profiles/`, a user's own lies beside the recipe and may
`extends:` a shipped one or another file. The profile `local` is completed from the machine that reads it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from targets import hardware
from targets.budget import Budget
from targets.documents import Document, Frozen, overlaid, read, validate
from targets.errors import Fault, InputError, nearest
from targets.wording import show_value

__all__ = [
    "MEASURED_BY",
    "Connection",
    "Energy",
    "Int8Rules",
    "Meter",
    "Runtime",
    "Target",
    "facts",
    "load",
    "moved",
    "only",
    "shipped",
]

PROFILES = Path(__file__).with_name("profiles")
MEASURED_BY = ("device", "machine", "has_any", "has_none", "runtime", "meter", "energy")
"""Fields of a target that what is measured on it depends on."""

SLUG = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # names become folders
# No leading dash: the host becomes a word on ssh's command line.
DEVICE = re.compile(
    r"ssh://([A-Za-z0-9_][\w.-]*@)?([A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:]+\])(:(?P<port>[0-9]{1,5}))?", re.ASCII
)


def _device(text: str) -> str:
    found = DEVICE.fullmatch(text)
    if text == "local" or (found and 0 < int(found["port"] or 22) < 65536):
        return text
    if re.match(r"ssh://[^@/]*:[^@]*@", text):
        raise ValueError("no password is taken, here or anywhere: use a key, or an agent; write ssh://user@host")
    raise ValueError(f"{text!r} must be local or ssh://[user@]host[:port]")


def _provider(name: str) -> str:
    if name in hardware.PROVIDERS:
        return name
    forms = {
        form.lower(): known for known in hardware.PROVIDERS for form in (known, known[: -len("ExecutionProvider")])
    }
    close = get_close_matches(name.lower(), forms, n=1, cutoff=0.85)
    hint = f": did you mean {forms[close[0]]!r}?" if close else ""
    raise ValueError(f"{name!r} is no execution provider of onnxruntime{hint}")


def _name(text: str) -> str:
    if re.fullmatch(SLUG, text):
        return text
    raise ValueError(f"{text!r} must be letters, digits, - _ and ., a letter or digit first: it names a folder")


Provider = Annotated[str, AfterValidator(_provider)]


class Runtime(Frozen):
    """The engine that runs the model on the target."""

    provider: Provider = Field("CPUExecutionProvider", description="onnxruntime execution provider")
    options: dict[str, str] = Field(default_factory=dict, description="options of that provider")
    fallback: tuple[Provider, ...] = Field(
        (), description="providers that may take, in this order, what the first does not; the CPU is always the last"
    )
    fixed_shapes: bool = Field(
        False, description="fix every open axis at the size it is fed with, the batch at 1: where shapes must be known"
    )
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


class Connection(Frozen):
    """How a device is reached, beside its address. OpenSSH reads ~/.ssh/config and asks the agent as it always does."""

    python: str = Field(
        "", description="the Python there that has onnxruntime; empty: attar's own, or python3 over SSH"
    )
    identity_file: str = Field("", description="private key; empty: what ssh finds by itself")
    known_hosts: str = Field("", description="file of host keys; empty: ssh's own. An unknown host is always refused")
    connect_timeout_s: Annotated[float, Field(ge=1, le=600)] = 10
    retries: Annotated[int, Field(ge=0, le=20)] = Field(2, description="times that a dropped connection is made anew")
    lease_wait_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        900, description="how long to wait while another run measures there"
    )


class Energy(Frozen):
    """Where the device tells what it has used, and what an estimate starts from where it does not."""

    power_w: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        None, description="watts that one busy core draws above idle: for estimates, which never meet a limit"
    )
    powercap: str = Field("/sys/class/powercap", description="root of the kernel's powercap tree (RAPL)")
    rails: tuple[str, ...] = Field((), description="labels of the power rails (INA) to add up; empty: no rails")


class Meter(Frozen):
    """How long and how often to measure."""

    warmup_s: Annotated[float, Field(ge=0, le=600)] = 0.3
    samples: Annotated[int, Field(ge=30, le=1_000_000)] = Field(600, description="latencies kept per model, at least")
    blocks: Annotated[int, Field(ge=3, le=1000)] = Field(12, description="turns that each model takes")
    max_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(60, description="bound on measuring one model")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(0.95, description="of every printed interval")
    throughput_batch: Annotated[int, Field(ge=1, le=4096)] = 32
    pin: bool = Field(
        True, description="keep the process on as many cores as it has threads: the idlest of the fastest"
    )
    energy_s: Annotated[float, Field(ge=0, le=600)] = Field(
        3, description="seconds in which each model's energy is counted, idle windows in between; 0: not at all"
    )


class Target(Frozen):
    """One kind of hardware with its runtime, its rules and its default limits."""

    name: Annotated[str, AfterValidator(_name), Field(max_length=100, description="letters, digits, - _ and .")]
    summary: str = ""
    device: Annotated[str, AfterValidator(_device)] = Field(
        "local", description="how the device is reached: local, or ssh://[user@]host[:port]"
    )
    connection: Connection = Connection()
    machine: Literal["", "x86_64", "aarch64"] = Field("", description="kind of processor; empty: any")
    has_any: tuple[str, ...] = Field((), description="CPU flags of which the hardware has at least one")
    has_none: tuple[str, ...] = Field((), description="CPU flags that the hardware lacks")
    runtime: Runtime = Runtime()
    int8: Int8Rules = Int8Rules()
    opset: Annotated[int, Field(ge=13, le=30)] = Field(21, description="highest ONNX opset that the runtime takes")
    ir_version: Annotated[int, Field(ge=7, le=20)] = Field(10, description="highest ONNX IR version it takes")
    channel_multiple: Annotated[int, Field(ge=1, le=256)] = Field(1, description="channel counts are rounded to this")
    meter: Meter = Meter()
    energy: Energy = Energy()
    budget: Budget = Budget()


def unlike(target: Target, machine: str, flags: Iterable[str]) -> str:
    """Why a processor is not the hardware that a target describes; empty if it is.

    Args:
        machine, flags: as `targets.probe.machine.cpu` finds them.
    """
    here, flags = hardware.plain(machine), set(flags)
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
        use: a shipped profile's name, or the path of a user's .yaml file. A file may name a shipped profile, or another
            file by its path from where it lies, with `extends:`; what the file says goes over that, key by key. Its
            `name` is the file's when it gives none.
        base: the folder that a relative path starts from; the working directory when left out.

    Raises:
        InputError: no such profile or file, or all that is wrong in the file.
    """
    if not _is_file(use):
        return Target(**_shipped(use, _unknown(use)))
    path = (base or Path()) / use
    doc = read(path, kind="target profile", start="`attar targets detect` proposes one to start from")
    return _checked(doc, _complete(doc, (path,)))


def moved(target: Target, device: str) -> Target:
    """The target reached at another address.

    Raises:
        InputError: the address is none.
    """
    try:
        return Target.model_validate({**target.model_dump(), "device": device})
    except ValidationError:
        what = f"{device!r} must be local or ssh://[user@]host[:port]"
        raise InputError(Fault(what, "--device", help="for example ssh://pi@raspberrypi.local")) from None


def facts(target: Target, fields: Iterable[str]) -> dict[str, Any]:
    """Plain JSON values of these fields of a target: what enters the key of a step that looks at them.

    Args:
        fields: names, or "budget.size_mb" for one part of a field.
    """
    found: dict[str, Any] = {}
    for name in fields:
        whole, _, part = name.partition(".")
        value = target.model_dump(mode="json", include={whole})[whole]
        if part:
            found.setdefault(whole, {})[part] = value[part]
        else:
            found[whole] = value
    return found


def only(target: Target, fields: Iterable[str]) -> Target:
    """The target reduced to its name, for messages, and to these fields; see `facts`."""
    return Target.model_validate_json(json.dumps({"name": target.name, **facts(target, fields)}))


def _is_file(use: str) -> bool:
    return use.endswith((".yaml", ".yml"))


def _checked(doc: Document, value: Mapping[str, Any]) -> Target:
    return validate(doc, Target, dict(value), command="attar targets show local")


def _unknown(name: str) -> Fault:
    what = f"no target is called {name!r}"
    return Fault(what, help=nearest(name, shipped(), command="attar targets"))


def _shipped(name: str, otherwise: Fault) -> dict[str, Any]:
    """Values of a shipped profile, `local` completed; `otherwise` is raised where there is none."""
    if name not in shipped():
        raise InputError(otherwise)
    value = read(PROFILES / f"{name}.yaml").value
    return _over(hardware.this(), value) if name == "local" else dict(value)


def _complete(doc: Document, above: tuple[Path, ...]) -> dict[str, Any]:
    """A file's values over those that it extends. `above`: the files that led here, this one last."""
    value = dict(doc.value)
    under: dict[str, Any] = {}
    if "extends" in value:
        under = _extended(doc, value.pop("extends"), above)
    connection = value.get("connection")
    for key in ("identity_file", "known_hosts"):
        if isinstance(connection, dict) and isinstance(named := connection.get(key), str) and named:
            path = os.path.expanduser(named)  # noqa: PTH111  leaves "~stranger" as it is, where Path's own raises
            value["connection"] = connection = connection | {key: str(doc.folder / path)}
    return _over(under | {"name": Path(doc.file).stem}, value)


def _extended(doc: Document, use: Any, above: tuple[Path, ...]) -> dict[str, Any]:
    """Values of what a file extends, checked: a fault is shown where it stands."""
    at = ("extends",)
    if not isinstance(use, str) or not use:
        what = f"{show_value(use)} must be a shipped profile's name, or the path of another .yaml file"
        raise InputError(doc.fault(at, what, "see `attar targets`"))
    if not _is_file(use):
        unknown = _unknown(use)
        return _shipped(use, doc.fault(at, unknown.what, unknown.help))
    path = above[-1].parent / use
    if path.resolve() in {file.resolve() for file in above}:
        way = " -> ".join(file.name for file in (*above, path))
        raise InputError(doc.fault(at, f"goes round in a circle: {way}", "extend a shipped profile: `attar targets`"))
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise InputError(doc.fault(at, f"there is no file {path}", nearest(path.name, near)))
    other = read(path)
    value = _complete(other, (*above, path))
    _checked(other, value)
    return value


def _over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values of one profile over those of another, key by key. Options and fallbacks are a provider's own: another
    provider starts without them."""
    runtime = under.get("runtime")
    mine = over.get("runtime")
    if isinstance(runtime, dict) and isinstance(mine, dict):
        provider = runtime.get("provider", Runtime().provider)
        if mine.get("provider", provider) != provider:
            kept = {k: v for k, v in runtime.items() if k not in ("options", "fallback", "fixed_shapes")}
            under = {**under, "runtime": kept}
    return overlaid(under, over)
