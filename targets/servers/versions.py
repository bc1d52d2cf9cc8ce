"""Which ONNX a server's version takes: a table, with its sources.

A server runs some onnxruntime or OpenVINO, and that takes models up to some opset and IR version. What does not fit is
brought down by `targets.servers.lowering`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeVar

from targets.artifact import Artifact
from targets.errors import InputError
from targets.hardware import ceilings

__all__ = ["SERVERS", "Ceiling", "assumed", "ceiling", "requirement", "triton_in_kserve"]

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

_LOOKED_AT: Mapping[str, _Version] = {"triton": (26, 7), "kserve": (0, 20), "openvino": (2026, 3)}
"""The newest release for which the tables hold, as far as anybody has looked."""


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


def assumed(server: str, server_version: str) -> str:
    """What a person must know of a version that was asked for and is in no table; empty where it is in one.

    Raises:
        InputError: no such version, or older than the table.
    """
    most = ceiling(server, server_version)
    if not server_version:
        return ""
    if most is None:
        return f"version {server_version} changes nothing: what MLServer takes is up to the onnxruntime beside it"
    kind = "triton" if server == "kserve" and triton_in_kserve(server_version) else server
    asked, known = _parsed(server_version, ""), _LOOKED_AT[kind]
    if asked is None or asked <= known:
        return ""
    newest = f"{known[0]}.{known[1]:02}" if kind == "triton" else f"{known[0]}.{known[1]}"
    return f"{server_version} is newer than what is known here; assumed: {ceiling(kind, newest)}"


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
        year, number = min(table)
        oldest = f"{year}.{number:02}" if server == "Triton" else f"{year}.{number}"
        what = f"{server} {text} is older than what is known of it, which starts at {oldest}"
        raise InputError(what, help=f"for example {example}")
    return asked, table[max(known)]
