"""Which ONNX a server's version takes, and a model brought down to it, proven to answer the same.

A server runs some onnxruntime or OpenVINO, and that takes models up to some opset and IR version. The table below says
which; `fitted` leaves a model that fits alone, converts one that does not, and refuses where the converted one is not
the same function.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from targets.artifact import Artifact, load
from targets.errors import InputError
from targets.hardware import ceilings
from targets.servers.agreement import ulps
from targets.servers.common import pretty, refuse
from targets.servers.disk import read
from targets.servers.shipment import Shipment

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto

__all__ = ["CONVERSION", "SERVERS", "Ceiling", "ceiling", "fitted", "requirement", "triton_in_kserve"]

CONVERSION = "conversion.json"
"""The paper that says what was done to the model."""

_Version = tuple[int, int]
_T = TypeVar("_T")

# Since which release of Triton which onnxruntime is in it: TRITON_VERSION_MAP (later DEFAULT_TRITON_VERSION_MAP) of
# https://github.com/triton-inference-server/server/blob/r26.07/build.py, and that file in the branch of each release.
_TRITON: Mapping[_Version, str] = {
    (22, 7): "1.12",
    (22, 10): "1.13",
    (23, 3): "1.14",
    (23, 5): "1.15",
    (23, 9): "1.16",
    (24, 3): "1.17",
    (24, 5): "1.18",
    (24, 8): "1.19",
    (24, 12): "1.20",
    (25, 3): "1.21",
    (25, 5): "1.22",
    (25, 8): "1.23",
    (26, 2): "1.24",
    (26, 7): "1.27",
}
_TRITON_SOURCE = "https://github.com/triton-inference-server/server/blob/r{}/build.py"

# KServe -> the Triton in its runtime for onnx: config/runtimes/kustomization.yaml, kserve-tritonserver's newTag, e.g.
# https://github.com/kserve/kserve/blob/v0.20.0/config/runtimes/kustomization.yaml
_KSERVE: Mapping[_Version, str] = {(0, 11): "23.05"}

# OpenVINO Model Server is numbered as the OpenVINO in it -> ONNX_OPSET_VERSION, above which OpenVINO warns and takes
# operators as they were: src/frontends/onnx/frontend/CMakeLists.txt of https://github.com/openvinotoolkit/openvino
# (2022: 16; 2025 and 2026: 21). It has no limit on the IR version.
_OPENVINO: Mapping[_Version, int] = {(2022, 3): 16, (2025, 2): 21}
_OPENVINO_SOURCE = (
    "https://github.com/openvinotoolkit/openvino/blob/releases/{}/{}/src/frontends/onnx/frontend/CMakeLists.txt"
)


_EXPORTED = 18  # the lowest opset that a recipe's export writes


@dataclass(frozen=True)
class Ceiling:
    """The most that a server's version is known to take. Newer models may run; nobody says so.

    Attributes:
        server: and what runs in it, in words: "Triton 23.05 (onnxruntime 1.15)".
        ir_version: None: no limit.
        source: where that can be read.
    """

    server: str
    opset: int
    ir_version: int | None
    source: str

    def takes(self, opset: int, ir_version: int) -> bool:
        """Whether a model of these versions is within it."""
        return opset <= self.opset and (self.ir_version is None or ir_version <= self.ir_version)

    def __str__(self) -> str:
        ir = "" if self.ir_version is None else f" and IR version {self.ir_version}"
        return f"{self.server} takes ONNX opset {self.opset}{ir} at most"


def ceiling(server: str, server_version: str) -> Ceiling | None:
    """What a server's version takes; None where it is whatever onnxruntime is installed beside it.

    Args:
        server_version: empty: the newest in the table; newer ones than that take at least as much.

    Raises:
        InputError: no such version, or older than the table.
    """
    return SERVERS[server](server_version)


def triton_in_kserve(server_version: str) -> str:
    """The release of Triton that is to run in KServe instead of its own ("25.10"); empty: KServe's own.

    Args:
        server_version: KServe's ("0.20"), or a Triton's ("25.10").
    """
    asked = _parsed(server_version, "0.20, KServe's own; or 25.10, the Triton in it")
    return f"{asked[0]}.{asked[1]:02}" if asked and asked[0] > 0 else ""


def requirement(model: Artifact) -> str:
    """What pip must install to run a model: "onnxruntime>=1.18"."""
    for minor in range(12, 21):
        opset, ir_version = ceilings(f"1.{minor}")
        if model.opset <= opset and model.ir_version <= ir_version:
            return f"onnxruntime>=1.{minor}"
    return f"onnxruntime>={version('onnxruntime')}"  # this one opened it


def _triton(server_version: str) -> Ceiling:
    row, onnxruntime = _row(_TRITON, server_version, "Triton", "25.10: its releases are numbered by year and month")
    opset, ir_version = ceilings(onnxruntime)
    release = f"{row[0]}.{row[1]:02}"
    return Ceiling(f"Triton {release} (onnxruntime {onnxruntime})", opset, ir_version, _TRITON_SOURCE.format(release))


def _kserve(server_version: str) -> Ceiling:
    if release := triton_in_kserve(server_version):
        return _triton(release)
    _, release = _row(_KSERVE, server_version, "KServe", "0.20")
    inner = _triton(release)
    return dataclasses.replace(inner, server=f"KServe's {inner.server}")


def _openvino(server_version: str) -> Ceiling:
    row, opset = _row(_OPENVINO, server_version, "OpenVINO Model Server", "2025.4")
    return Ceiling(f"OpenVINO Model Server {row[0]}.{row[1]}", opset, None, _OPENVINO_SOURCE.format(*row))


def _any(server_version: str) -> None:
    _parsed(server_version, "1.7")


SERVERS: Mapping[str, Callable[[str], Ceiling | None]] = {
    "triton": _triton,
    "mlserver": _any,
    "kserve": _kserve,
    "openvino": _openvino,
}
"""Server -> what a version of it takes."""


def _parsed(text: str, example: str) -> _Version | None:
    if not text:
        return None
    found = re.fullmatch(r"v?([0-9]{1,4})\.([0-9]{1,4})(\.[0-9.]+)?(-py3)?", text)
    if not found:
        raise InputError(f"{text!r} is no version of that server", help=f"for example {example}")
    return int(found[1]), int(found[2])


def _row(table: Mapping[_Version, _T], text: str, server: str, example: str) -> tuple[_Version, _T]:
    """(version as asked, or the newest in the table; the table's row for it)."""
    asked = _parsed(text, example) or max(table)
    known = [since for since in table if since <= asked]
    if not known:
        oldest = min(table)
        what = f"{server} {text} is older than what is known of it, which starts at {oldest[0]}.{oldest[1]:02}"
        raise InputError(what, help=f"for example {example}")
    return asked, table[max(known)]


def fitted(shipment: Shipment, server: str, server_version: str) -> Shipment:
    """The shipment with a model that the server's version takes: the same one, or converted down.

    The converted model answers the golden sample as the original does, by onnxruntime on the CPU: bit by bit, or within
    one unit in the last place of float32. What was done goes into the papers as conversion.json.

    Raises:
        InputError: the version is not known; or no model that answers the same could be made for it.
    """
    most = ceiling(server, server_version)
    model = shipment.model
    if most is None or most.takes(model.opset, model.ir_version):
        return shipment
    if not len(shipment.sample):
        raise _unfit(shipment, most, "there is no golden sample to prove a converted one on")
    if len(model.inputs) != 1:
        raise _unfit(shipment, most, f"it has {len(model.inputs)} inputs, and the golden sample is of one")
    lower, within = _lowered(shipment, most)
    proof = {"examples": len(shipment.sample), "bit_equal": within == 0, "onnxruntime": version("onnxruntime")}
    paper = {
        "version": 1,
        "because": f"{most}; this model has opset {model.opset} and IR version {model.ir_version}",
        "source": most.source,
        "by": f"onnx.version_converter, onnx {version('onnx')}",
        "from": _facts(model),
        "to": _facts(lower),
        "proof": proof | {"within_ulp": within},
    }
    return dataclasses.replace(shipment, model=lower, papers={**shipment.papers, CONVERSION: pretty(paper)})


def _facts(model: Artifact) -> dict[str, Any]:
    return {"sha256": model.sha256, "opset": model.opset, "ir_version": model.ir_version}


def _unfit(shipment: Shipment, most: Ceiling, why: str) -> InputError:
    model, opset = shipment.model, _reached(most)
    newer = "name a newer server with --server-version"
    again = f"export it lower: `export: {{opset: {opset}}}` in the recipe, then `attar run`; or {newer}"
    return refuse(
        model,
        f"has opset {model.opset} and IR version {model.ir_version}; {most} ({most.source}); {why}",
        again if opset >= _EXPORTED else newer,
    )


def _lowered(shipment: Shipment, most: Ceiling) -> tuple[Artifact, int]:
    """The model within a ceiling, and how far its answers are apart: 0 or 1 units in the last place."""
    import onnx
    from onnx import checker, shape_inference, version_converter

    data = read(shipment.model.path) or b""
    if hashlib.sha256(data).hexdigest() != shipment.model.sha256:
        raise refuse(shipment.model, "was changed while it was being shipped", "ship it again when that is done")
    original = onnx.load_model_from_string(data)
    try:
        then = _answers(shipment.model.path, shipment.model, shipment.sample)
        lower = _converted(original, most)
        path = _place() / f"{shipment.model.sha256}-{_reached(most)}-{lower.ir_version}.onnx"
        path.write_bytes(lower.SerializeToString())
        made = load(path)
        now = _answers(path, made, shipment.sample)
    except (
        *(InputError, RuntimeError, ValueError, checker.ValidationError),
        *(version_converter.ConvertError, shape_inference.InferenceError),  # plain exceptions both
    ) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix(f"{_place()}/")
        raise _unfit(shipment, most, f"converting it down failed: {first}") from None
    apart = [_apart(a, b) for a, b in zip(then, now, strict=True)]
    if not all(0 <= each <= 1 for each in apart):
        most_of = f", by up to {max(apart)} units in the last place" if min(apart) >= 0 else ""
        raise _unfit(shipment, most, f"the converted model answers the golden sample otherwise{most_of}")
    return made, max(apart)


def _converted(model: ModelProto, most: Ceiling) -> ModelProto:
    """The model in an opset and an IR version within the ceiling.

    Raises:
        RuntimeError: an operator has no older form.
    """
    from onnx import checker, version_converter

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    wanted = min(opset, _reached(most))
    _forget_defaults(model, opset, wanted)
    lower = version_converter.convert_version(model, wanted) if wanted < opset else model
    if most.ir_version is not None:
        lower.ir_version = min(lower.ir_version, most.ir_version)
    checker.check_model(lower, full_check=True)
    return lower


def _forget_defaults(model: ModelProto, opset: int, wanted: int) -> None:
    """Takes away attributes that the older form of a node's operator lacks, where they say what is so without them.

    The converter leaves them, and the checker refuses them: noop_with_empty_axes of ReduceMean, which came with 18.
    """
    from onnx import defs

    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            now, then = (defs.get_schema(node.op_type, number).attributes for number in (opset, wanted))
        except defs.SchemaError:  # the converter will say it
            continue
        kept = [a for a in node.attribute if a.name in then or a.name not in now or _differs(a, now[a.name])]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def _differs(attribute: AttributeProto, known: Any) -> bool:
    """Whether an attribute says something else than its default."""
    from onnx import helper

    default = known.default_value
    return not default.name or helper.get_attribute_value(attribute) != helper.get_attribute_value(default)


def _reached(most: Ceiling) -> int:
    """The highest opset whose own IR version is within the ceiling too: 19 came with IR version 9, 18 with 8."""
    from onnx import helper

    for opset in range(most.opset, 6, -1):
        if (
            most.ir_version is None
            or helper.find_min_ir_version_for([helper.make_opsetid("", opset)]) <= most.ir_version
        ):
            return opset
    return most.opset


def _answers(path: Path, model: Artifact, sample: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Every output for the sample, by onnxruntime on the CPU; a fixed batch is fed with examples over and over."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        batch = model.inputs[0].shape[0]
        size = batch if isinstance(batch, int) else min(64, len(sample))
        parts = []
        for start in range(0, len(sample), size):
            rows = np.arange(start, start + size) % len(sample)
            parts.append(session.run(None, {model.inputs[0].name: sample[rows]}))
    except Exception as error:  # onnxruntime's own errors share no public parent
        raise RuntimeError(f"onnxruntime refuses it: {error}") from None
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _apart(a: NDArray[Any], b: NDArray[Any]) -> int:
    """How far two outputs are apart, in units in the last place of float32; -1 where that is not to be said."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return -1
    if a.dtype == np.float32:
        return ulps(a, b)
    return 0 if a.tobytes() == b.tobytes() else -1


@cache
def _place() -> Path:
    """A folder for converted models, until this process ends."""
    return Path(_keeper().name)


@cache
def _keeper() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="attar-ship-")
