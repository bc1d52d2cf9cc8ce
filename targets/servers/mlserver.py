"""Seldon's MLServer: a folder per version, each with its own settings and the class that runs it.

    DEST/settings.json                            of the server; one that is there already is left as it is
    DEST/<name>/<version>/model-settings.json     names, types, shapes; provider and threads of the target
    DEST/<name>/<version>/attar_runtime.py        the class that serves it: MLServer has none for ONNX
    DEST/<name>/<version>/model.onnx

Versions lie beside each other and are all loaded; the highest answers where a request names none.

Formats:
    https://mlserver.readthedocs.io/en/stable/reference/model-settings.html
    https://mlserver.readthedocs.io/en/stable/reference/settings.html
    https://github.com/SeldonIO/MLServer/blob/master/mlserver/settings.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from targets.artifact import MODEL, Value
from targets.servers.common import datatype, described, fixed_batch, labels, pretty, version_files
from targets.servers.neighbours import SETTINGS
from targets.servers.shipment import Layout, Options, Shipment
from targets.servers.versions import requirement

__all__ = ["RUNTIME", "layout"]

RUNTIME = Path(__file__).with_name("files") / "attar_runtime.py"

_TYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

# What stands here goes over MLServer's environment variables, so the ports are left to them (or 8080 and 8081).
_SETTINGS = {
    "debug": False,  # or it logs every request
    "host": "127.0.0.1",  # MLServer's own default is every address of the machine
    "metrics_endpoint": None,  # no third port; "/metrics" for Prometheus
    "parallel_workers": 0,  # in the server's own process: an answer takes no detour
}


def layout(shipment: Shipment, options: Options) -> Layout:
    """Files of one version, and the server's settings where there are none.

    Raises:
        InputError: a type that MLServer does not know, or batching was asked for and the graph's batch is fixed.
    """
    fixed = fixed_batch(shipment.model, options, "MLServer")
    batches = not fixed and options.max_batch > 1 and options.delay_us > 0
    return Layout(
        version_files(shipment),
        described(shipment),
        root={"settings.json": _kept},
        added={RUNTIME.name: RUNTIME.read_bytes(), SETTINGS: _settings(shipment, options if batches else None)},
        batch=fixed,
        start=lambda dest: (
            f"pip install mlserver '{requirement(shipment.model)}' && PYTHONDONTWRITEBYTECODE=1 mlserver start {dest}"
        ),
        port=8080,
        notes=tuple(_notes(shipment, options, fixed, batches)),
    )


def _settings(shipment: Shipment, batching: Options | None) -> Callable[[int], bytes]:
    """model-settings.json of a version. `batching`: None where MLServer builds no batches."""
    runtime = shipment.target.runtime
    settings: dict[str, Any] = {
        "name": shipment.name,
        "implementation": f"{RUNTIME.stem}.OnnxModel",
        "platform": "onnx",
        "inputs": [_tensor(shipment, value) for value in shipment.model.inputs],
        "outputs": [_tensor(shipment, value) for value in shipment.model.outputs],
    }
    if batching:
        settings |= {"max_batch_size": batching.max_batch, "max_batch_time": batching.delay_us / 1e6}
    extra = {
        "provider": runtime.provider,
        "options": dict(runtime.options),
        "fallback": list(runtime.fallback),
        "threads": runtime.threads,
        "labels": list(labels(shipment)),
        "preprocessing": dict(shipment.preprocessing),
        "sha256": shipment.model.sha256,
    }

    def numbered(version: int) -> bytes:
        # The path is relative to this file: the folder may be moved.
        parameters = {"uri": f"./{MODEL}", "version": str(version), "extra": extra}
        return pretty({**settings, "parameters": parameters})

    return numbered


def _tensor(shipment: Shipment, value: Value) -> dict[str, Any]:
    known = datatype(shipment.model, value, _TYPES, "MLServer")
    return {"name": value.name, "datatype": known, "shape": list(value.sizes)}


def _kept(there: bytes | None) -> bytes:
    """The server's settings are its owner's: what is there stays, whatever it says."""
    return pretty(_SETTINGS) if there is None else there


def _notes(shipment: Shipment, options: Options, fixed: int, batches: bool) -> Iterator[str]:
    if fixed:
        yield f"the graph's batch is fixed at {fixed}: requests must have exactly that"
    elif batches:
        yield (
            f"MLServer waits {options.delay_us} µs to join up to {options.max_batch} requests; a wrong shape fails "
            "those that it was joined with"
        )
    elif options.max_batch > 1:
        yield "MLServer builds no batches without a time to wait for others (delay); a request may hold any number"
    if options.instances > 1:
        yield (
            f"MLServer has no instances per model: for {options.instances} processes set parallel_workers in "
            "settings.json, for all its models"
        )
    yield "it listens on 127.0.0.1 until you change host in settings.json; its ports: MLSERVER_HTTP_PORT and _GRPC_PORT"
