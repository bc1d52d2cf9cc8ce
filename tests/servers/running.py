"""Real inference servers, started on free ports of this machine and ended for sure.

    with triton(repository) as server:
        urlopen(f"http://{server.http}/v2/health/ready")

Each is waited for until it says that it is ready; one that does not come up is an error that holds its log.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from install import installed, python_of

__all__ = ["Running", "kserve", "mlserver", "triton"]

HERE = Path(__file__).parent
QUIET = {  # no server tells anybody that it runs
    "OMP_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
    "OTEL_SDK_DISABLED": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        http, grpc: its addresses, "127.0.0.1:port".
    """

    http: str
    grpc: str
    process: subprocess.Popen[bytes]
    path: Path

    def log(self) -> str:
        """All that it has said."""
        return self.path.read_text(encoding="utf-8", errors="replace")

    def lose(self) -> None:
        """Kills it alone. Its children are stopped, and so hold its connections open as busy ones do."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        self.process.kill()
        self.process.wait()

    def kill(self) -> None:
        """Ends it as a crash would."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def triton(
    repository: Path,
    explicit: bool = False,
    *,
    poll: bool = False,
    disturb: str = "",
    hold: Path | None = None,
    bare: bool = False,
    timeout: float = 180,
) -> Iterator[Running]:
    """NVIDIA's Triton over a model repository; its ONNX Runtime backend is `triton_backend.py`.

    Args:
        explicit: models are loaded and unloaded by request, and none at the start.
        poll: it looks for changes in the repository every second.
        disturb: "name:version" of those that shall answer wrongly, comma-separated.
        hold: folder of files that make versions wait; see `triton_backend.py`.
        bare: without a backend for ONNX, as the pytriton wheel brings it.
    """
    site = next((installed("triton") / "lib").glob("python3.*/site-packages"))
    home = site / "pytriton" / "tritonserver"
    python = site.parent.name.removeprefix("python")
    mode = "explicit" if explicit else "poll" if poll else "none"
    with tempfile.TemporaryDirectory(prefix="attar-triton-") as scratch:
        backends = Path(scratch) / "backends"
        shutil.copytree(home / "backends" / "python", backends / "python")
        shutil.copy(home / "python_backend_stubs" / python / "triton_python_backend_stub", backends / "python")
        if not bare:
            (backends / "onnxruntime").mkdir()
            shutil.copy(HERE / "triton_backend.py", backends / "onnxruntime" / "model.py")
        http, grpc = _ports(2)
        command = (
            *(str(home / "bin" / "tritonserver"), f"--model-repository={repository}"),
            *(f"--backend-directory={backends}", f"--model-control-mode={mode}", "--repository-poll-secs=1"),
            *("--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
            *("--allow-metrics=false", "--exit-on-error=false", "--strict-readiness=false", "--exit-timeout-secs=2"),
        )
        extra = {
            "BACKEND_SITE": str(site),
            "BACKEND_DISTURB": disturb,
            "BACKEND_HOLD": str(hold or ""),
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        }
        with _running(command, http, grpc, extra, repository, timeout) as server:
            yield server


@contextmanager
def mlserver(folder: Path, *, timeout: float = 180) -> Iterator[Running]:
    """Seldon's MLServer over a folder with one or more model-settings.json."""
    environment = installed("mlserver")
    http, grpc, metrics = _ports(3)
    settings = {"HOST": "127.0.0.1", "HTTP_PORT": http, "GRPC_PORT": grpc, "METRICS_PORT": metrics}
    extra = {f"MLSERVER_{name}": str(value) for name, value in settings.items()}
    command = (str(environment / "bin" / "mlserver"), "start", ".")
    with _running(command, http, grpc, extra, folder, timeout) as server:
        yield server


@contextmanager
def kserve(folder: Path, *, timeout: float = 180) -> Iterator[Running]:
    """KServe's model server, with the model of `kserve_model.py` for each folder in `folder`."""
    environment = installed("kserve")
    http, grpc = _ports(2)
    script = HERE / "kserve_model.py"
    ports = (f"--http_port={http}", f"--grpc_port={grpc}", "--workers=1")
    command = (str(python_of(environment)), str(script), *ports, f"--models={folder}")
    with _running(command, http, grpc, {}, folder, timeout) as server:
        yield server


@contextmanager
def _running(
    command: tuple[str, ...], http: int, grpc: int, extra: Mapping[str, str], folder: Path, timeout: float
) -> Iterator[Running]:
    """Starts a server as the leader of a process group of its own, waits until it is ready, and ends the group."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLSERVER_"))}
    with tempfile.TemporaryDirectory(prefix="attar-server-") as scratch:
        log = Path(scratch) / "log.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**own, **QUIET, **extra},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_ends_with_us,
            )
        server = Running(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process, log)
        try:
            _wait(server, timeout)
            yield server
        finally:
            _end(server)


def _ends_with_us() -> None:
    """In the new process: have the kernel end it when its parent is gone, even if that was killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait(server: Running, timeout: float) -> None:
    end = time.monotonic() + timeout
    while server.process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    ended = server.process.poll()
    what = f"was not ready within {timeout:g} s" if ended is None else f"ended with {ended}"
    raise RuntimeError(f"the server {what}. Its log:\n{server.log()}")


def _end(server: Running) -> None:
    """Asks it to end, and kills what is left of its group: workers outlive a parent that was killed."""
    if server.process.poll() is None:
        server.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(20)
    server.kill()


def _ports(count: int) -> list[int]:
    """Ports that are free on the loopback address now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
