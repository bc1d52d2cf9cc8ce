"""OpenVINO Model Server: numbered versions beside one config.json, which all models share.

    DEST/config.json                  every model by name, with threads, streams and device
    DEST/<name>/<version>/model.onnx  read as it is: no conversion to OpenVINO's own format is needed

Formats:
    https://github.com/openvinotoolkit/model_server/blob/main/docs/models_repository_classic.md
    https://github.com/openvinotoolkit/model_server/blob/main/docs/parameters.md
    https://github.com/openvinotoolkit/model_server/blob/main/src/schema.cpp  (the schema of config.json)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from targets.errors import Fault, InputError
from targets.servers.common import described, fixed_batch, pretty, version_files
from targets.servers.shipment import Layout, Options, Shipment

__all__ = ["CONFIG", "layout"]

CONFIG = "config.json"

_PORT = 8000


def layout(shipment: Shipment, options: Options) -> Layout:
    """Files of one model, and its entry in the list of all.

    Raises:
        InputError: batching was asked for and the graph's batch is fixed. From the root file's function: what is there
            is no config.json of this server.
    """
    fixed = fixed_batch(shipment.model, options, "OpenVINO Model Server")
    return Layout(
        version_files(shipment),
        described(shipment),
        root={CONFIG: _among(_entry(shipment, options))},
        batch=fixed,
        start=lambda dest: f"ovms --config_path {dest}/{CONFIG} --rest_port {_PORT} --rest_bind_address 127.0.0.1",
        port=_PORT,
        notes=tuple(_notes(shipment, options, fixed)),
    )


def _entry(shipment: Shipment, options: Options) -> dict[str, Any]:
    runtime = shipment.target.runtime
    ours = runtime.provider == "OpenVINOExecutionProvider"
    return {
        "name": shipment.name,
        "base_path": shipment.name,  # relative to config.json: the folder may be moved, and mounted anywhere
        "model_version_policy": {"latest": {"num_versions": 1}},
        "target_device": runtime.options.get("device_type", "CPU") if ours else "CPU",
        "nireq": options.instances,
        # Threads are those of the whole model; https://docs.openvino.ai/2025/openvino-workflow/running-inference/
        # inference-devices-and-modes/cpu-device/performance-hint-and-thread-scheduling.html
        "plugin_config": {
            "INFERENCE_NUM_THREADS": runtime.threads * options.instances,
            "NUM_STREAMS": options.instances,
        },
    }


def _among(entry: dict[str, Any]) -> Callable[[bytes | None], bytes]:
    """Puts the entry among those of other models, in the place of an older one of the same name; all else stays."""

    def merged(there: bytes | None) -> bytes:
        config = _read(there)
        listed = config["model_config_list"]
        names = [each["config"]["name"] for each in listed]
        new = {"config": entry}
        if entry["name"] in names:
            listed[names.index(entry["name"])] = new
        else:
            listed.append(new)
        return pretty(config)

    return merged


def _read(there: bytes | None) -> dict[str, Any]:
    if there is None:
        return {"model_config_list": []}
    try:
        config = json.loads(there)
        ours = all(isinstance(each["config"]["name"], str) for each in config["model_config_list"])
        ours = ours and isinstance(config["model_config_list"], list)
    except (ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        what = "is there and is no list of models of OpenVINO Model Server (model_config_list)"
        raise InputError(Fault(what, file=CONFIG, help="move it away, or give another DEST"))
    return dict(config)


def _notes(shipment: Shipment, options: Options, fixed: int) -> Iterator[str]:
    runtime = shipment.target.runtime
    if fixed:
        yield f"the graph's batch is fixed at {fixed}: requests must have exactly that"
    elif options.max_batch > 1:
        yield "OpenVINO Model Server builds no batches of single requests; a request may hold any number of examples"
    if runtime.provider != "OpenVINOExecutionProvider":
        yield (
            f"{shipment.target.name} was measured with {runtime.provider}, and this server runs OpenVINO: int8 answers "
            "may differ by a step or two, so compare classes there, and measure again"
        )
