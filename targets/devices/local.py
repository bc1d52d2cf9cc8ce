"""This machine as a device: the probe runs in fresh, isolated processes, so that nothing that this process has loaded
or set is measured along."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from targets.devices.stream import Keeper, LostError, last_words, starter, take_lease, work
from targets.errors import DeviceError
from targets.probe.cache import CacheError, plain
from targets.target import Connection, Target

__all__ = ["LocalDevice", "LocalWorkspace"]


def _silent(_: str) -> None: ...


class LocalDevice:
    """This machine. Its settings are `connection.python` and `connection.lease_wait_s`."""

    def __init__(self, target: Target | None = None) -> None:
        self._connection = target.connection if target else Connection()
        self._identity: dict[str, Any] = {}

    @contextmanager
    def open(self, say: Callable[[str], None] = _silent) -> Iterator[LocalWorkspace]:
        """A new folder, removed at the end; see `targets.devices.Device`."""
        with closing(self._start()) as keeper:
            if note := keeper.hello["note"]:
                say(note)
            try:
                take_lease(keeper, uuid.uuid4().hex, self._connection.lease_wait_s, say)
                folder = Path(keeper.ask("open")[0]["folder"])
            except LostError as lost:
                raise _broken(lost) from lost
            yield LocalWorkspace(keeper, folder)

    def identity(self) -> dict[str, Any]:
        """Processor, usable cores, and what its Python has."""
        if not self._identity:
            with closing(self._start()) as keeper:
                try:
                    self._identity = json.loads(keeper.ask("identity", answer_s=300)[1])
                except LostError as lost:
                    raise _broken(lost) from lost
        return dict(self._identity)

    def _start(self) -> Keeper:
        python = os.path.expanduser(self._connection.python) or sys.executable  # noqa: PTH111  may be a bare command
        help = "connection.python in the target's profile names the Python that has onnxruntime"
        try:
            return Keeper(starter(python, 0), "", explain=lambda _, words, why: _explain(python, words, why))
        except OSError as error:
            raise DeviceError(f"cannot start Python as {python}: {error.strerror or error}; {help}") from error


class LocalWorkspace:
    """A folder of this machine; see `targets.devices.Workspace`. Files are copied without the stream."""

    def __init__(self, keeper: Keeper, folder: Path) -> None:
        self._keeper, self.folder = keeper, folder

    def put(self, source: Path, name: str) -> None:
        """Copies a file in. Raises DeviceError when it cannot be copied (a full disk)."""
        try:
            shutil.copyfile(source, self.folder / _plain(name))
        except OSError as error:
            raise DeviceError(f"cannot copy {source} to {self.folder}: {error.strerror or error}") from error

    def get(self, name: str) -> Path:
        """A file that the probe wrote."""
        path = self.folder / _plain(name)
        if path.is_symlink() or not path.is_file():
            raise DeviceError(f"the probe wrote no file {name}")
        return path

    def run(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Runs the probe; its whole process group ends with this call, whatever happens."""
        try:
            return work(self._keeper, job, timeout_s)
        except LostError as lost:
            raise _broken(lost) from lost


def _plain(name: str) -> str:
    try:
        return plain(name)
    except CacheError as error:
        raise DeviceError(str(error)) from None


def _explain(python: str, words: str, why: str) -> DeviceError:
    if "attar needs Python" in words:
        return DeviceError(f"{words.strip()} ({python})")
    return DeviceError(f"{python} did not start the probe: {why}{last_words(words)}")


def _broken(lost: LostError) -> DeviceError:
    return DeviceError(f"the process that starts the probe on this machine ended: {lost}; give the same command again")
