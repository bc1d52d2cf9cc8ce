"""Ways to reach a device: put files there, run the probe, get its answer.

A device gives a `Workspace`: one folder on the device, gone when the work is done. A new kind of device is one file
here, one row in `targets.measure.DEVICES`, and one more word in `Target.device`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Device", "Workspace"]


class Workspace(Protocol):
    """A folder on the device, in which the probe runs."""

    def put(self, source: Path, name: str) -> None:
        """Copies a file into the workspace, under `name`."""

    def run(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Runs `targets/probe.py` in a fresh process there, and gives its answer.

        Raises:
            DeviceError: the probe failed, ended without an answer, or took longer than `timeout_s`.
        """

    def get(self, name: str) -> Path:
        """A file that the probe wrote, as a path on this machine; valid until the workspace is closed."""


class Device(Protocol):
    """A machine that can run models."""

    def open(self) -> AbstractContextManager[Workspace]:
        """A new, empty workspace."""

    def identity(self) -> dict[str, Any]:
        """What tells this machine from one that would measure differently; plain JSON values, the same each time."""
