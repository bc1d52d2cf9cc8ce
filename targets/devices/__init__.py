"""Ways to reach a device: put files there, run the probe, get its answer.

A device gives a `Workspace`: one folder on the device, gone when the work is done, and a lease: while it is open,
nobody else measures there. A new kind of device is one file here and one row in `targets.measure.DEVICES`; the scheme
of `Target.device` ("local", "ssh") chooses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Device", "Workspace"]


class Workspace(Protocol):
    """A folder on the device, in which the probe runs."""

    def put(self, source: Path, name: str) -> None:
        """Copies a file into the workspace, under `name`. `source` must stay as it is until the workspace is closed."""

    def run(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Runs the probe in a fresh process there, and gives its answer.

        Raises:
            DeviceError: the probe failed, ended without an answer, or took longer than `timeout_s`; the device
                vanished and did not come back.
        """

    def get(self, name: str) -> Path:
        """A file that the probe wrote, as a path on this machine; valid until the workspace is closed."""


class Device(Protocol):
    """A machine that can run models."""

    def open(self, say: Callable[[str], None] = ...) -> AbstractContextManager[Workspace]:
        """A new, empty workspace, once the device is free.

        Args:
            say: is told, in a sentence, what a person should know: "waiting for another run on pi4".

        Raises:
            DeviceError: the device cannot be reached, has no Python, or stays busy.
        """

    def identity(self) -> dict[str, Any]:
        """What tells this machine from one that would measure differently; plain JSON values, the same each time.

        Keys: what `targets.probe.machine.cpu` gives (model, machine, cores, flags), and "python", "numpy",
        "onnxruntime" (versions; "" where absent) and "providers" (of onnxruntime, in its order).

        Raises:
            DeviceError: the device cannot be reached, or has no Python.
        """
