"""This machine as a device: the probe runs in a fresh, isolated process, so that nothing that this process has loaded
or set is measured along."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from targets import probe
from targets.errors import DeviceError

__all__ = ["LocalDevice"]

_KEPT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")  # what a loader needs; no OMP_*, ORT_*, PYTHON*


class LocalDevice:
    """This machine."""

    @contextmanager
    def open(self) -> Iterator[LocalWorkspace]:
        """A new folder, removed at the end."""
        with tempfile.TemporaryDirectory(prefix="attar-probe-") as folder:
            yield LocalWorkspace(Path(folder))

    def identity(self) -> dict[str, Any]:
        """Processor and usable cores."""
        return probe.cpu()


class LocalWorkspace:
    """A folder of this machine; see `targets.devices.Workspace`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, source: Path, name: str) -> None:
        """Copies a file in. Raises DeviceError when it cannot be copied (a full disk)."""
        try:
            shutil.copyfile(source, self.folder / name)
        except OSError as error:
            raise DeviceError(f"cannot copy {source} to {self.folder}: {error.strerror or error}") from error

    def get(self, name: str) -> Path:
        """A file that the probe wrote."""
        return self.folder / name

    def run(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Runs the probe; its whole process group ends with this call, whatever happens."""
        answer, errors = self.folder / "result.json", self.folder / "stderr.txt"
        answer.unlink(missing_ok=True)
        (self.folder / "job.json").write_text(json.dumps({**job, "result": answer.name}), encoding="utf-8")
        command = [sys.executable, "-I", "-X", "faulthandler", probe.__file__, str(self.folder / "job.json")]
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {"LC_ALL": "C.UTF-8"}
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"the probe did not end within {timeout_s:.0f} s and was stopped{_tail(errors)}"
                ) from None
            finally:
                _end(process)
        found = _read(answer)
        if "error" in found:
            raise DeviceError(found["error"])
        if code != 0 or not found:
            how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
            raise DeviceError(f"the probe {how} and gave no answer{_tail(errors)}")
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process group, unless it has ended by itself."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def _tail(path: Path, lines: int = 8) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        text = file.read().decode("utf-8", errors="replace").strip()
    return "; its last words:\n" + "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) if text else ""
