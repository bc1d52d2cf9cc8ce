"""Execution providers that come as plug-ins: packages of their own beside onnxruntime (1.23 or later).

Each needs its vendor's hardware or licence, so tests run only where an environment has it: QNN on its emulator does;
the OpenVINO plug-in found no device on an AMD processor, and was not run further.
The way: https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from targets.probe.errors import ProbeError, short

__all__ = ["PLUGINS", "add", "built_in"]

PLUGINS = {"QNNExecutionProvider": "onnxruntime_qnn", "OpenVINOExecutionProvider": "onnxruntime_ep_openvino"}

_LOADED: set[str] = set()


def built_in() -> list[str]:
    """The providers of onnxruntime itself; it counts plug-ins among them once they are registered."""
    import onnxruntime as ort

    return [name for name in ort.get_available_providers() if name not in _LOADED]


def add(provider: str, options: Mapping[str, str], session_options: Any) -> bool:
    """Gives the session this plug-in provider; False if its package is not installed here.

    QNN's `backend_path` is the package's own HTP backend where the options name none. OpenVINO's `device_type` ("CPU"
    where left out) chooses among the devices that the plug-in offers, and is no option of the plug-in itself.

    Raises:
        ProbeError: the plug-in does not load, or offers no device on this machine.
    """
    import onnxruntime as ort

    if provider not in PLUGINS or not hasattr(ort, "register_execution_provider_library"):
        return False
    try:
        package: Any = importlib.import_module(PLUGINS[provider])
    except ModuleNotFoundError:
        return False
    given = dict(options)
    try:
        if provider not in _LOADED:
            ort.register_execution_provider_library(provider, package.get_library_path())  # its name becomes the EP's
            _LOADED.add(provider)
        devices = [device for device in ort.get_ep_devices() if device.ep_name == provider]
    except Exception as error:
        raise ProbeError(f"{provider} (package {PLUGINS[provider]}) does not load: {short(error)}") from error
    if provider == "OpenVINOExecutionProvider":
        kind = given.pop("device_type", "CPU")
        devices = [device for device in devices if device.ep_metadata.get("ov_device", kind) == kind]
    elif not {"backend_path", "backend_type"} & set(given):
        given["backend_path"] = package.get_qnn_htp_path()
    if not devices:
        raise ProbeError(f"{provider} (package {PLUGINS[provider]}) finds no device that it can use on this machine")
    session_options.add_provider_for_devices(devices, given)
    return True
