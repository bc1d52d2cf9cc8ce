"""Serves one run on a device, over standard input and output, and leaves nothing behind when it ends.

    python probe.pyz keep SILENCE_S PYTHON

PYTHON is what jobs are run with. The keeper says `MARK` first, then a message {"python", "root", "note"}, and then
answers each message {"op": ...}, in order:

    identity                        the machine, as JSON data; see `targets.probe.identity`
    lease   run                     {"busy": {}} when this run may measure now, or {"busy": {"pid", "for_s"}}
    open                            {"folder"}: a new workspace; needs the lease
    put     name, sha256            {"have": true} when the file was here and is in place now; else send it:
    store   name, sha256, data      {}
    run     timeout_s, data (a job) {"code", "timed_out", "stderr"} and the answer's bytes as data
    get     name                    a file of the workspace, as data
    ping                            no answer; says that the other side lives

or {"error": text}. It ends when its input ends, when nothing was heard for SILENCE_S seconds (0: it waits for ever), or
on SIGTERM, SIGHUP and SIGINT; before, it kills the job with its whole process group and removes the workspace.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from targets.probe.cache import Cache, CacheError, plain
from targets.probe.frames import GoneError, Pipe
from targets.probe.identity import identity

__all__ = ["MARK", "main"]

MARK = b"\x1eattar keeper 1\n"  # what a chatty login shell does not say
_KEPT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")  # what a loader needs; no OMP_*, ORT_*, PYTHON*
# From 1.29 on, onnxruntime's own packages for Linux send usage data, names and hashes of models among it, from a thread
# of the process that is measured here: https://github.com/microsoft/onnxruntime/pull/27379
_SET = {"LC_ALL": "C.UTF-8", "ORT_DISABLE_TELEMETRY": "1"}
_OPS = ("identity", "lease", "open", "put", "store", "run", "get")
_FULL = "make room on the device, or set XDG_CACHE_HOME there to a folder on another disk"
_IDENTITY_S = 120.0  # importing the runtime from a slow card


class Keeper:
    """What is open for one run: a workspace, the lease, and at times a job."""

    def __init__(self, pipe: Pipe, cache: Cache, probe: Path, python: str) -> None:
        self.pipe, self.cache, self.probe, self.python = pipe, cache, probe, python
        self.folder: Path | None = None
        self._refused = 0

    def serve(self) -> None:
        """Answers until the other side is gone."""
        while True:
            message = self.pipe.receive()
            op = message.get("op")
            if op == "ping":
                continue
            try:
                answer = getattr(self, op if op in _OPS else "unknown")(message)
            except CacheError as error:
                answer = {"error": str(error)}
            except OSError as error:
                answer = {"error": _told(error, self.cache.root)}
            if answer is not None:
                for _ in self.pipe.chunks():  # an error may have left some
                    pass
                self.pipe.send({k: v for k, v in answer.items() if k != "data"}, answer.get("data", b""))

    def unknown(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to anything else."""
        return {"error": f"{message.get('op')!r} is nothing that a keeper does"}

    def identity(self, message: dict[str, Any]) -> dict[str, Any]:
        """The machine. A process of its own imports the packages, so that one that crashes takes nothing along."""
        with tempfile.TemporaryFile() as output:
            self._python(["identity"], self.cache.root, _IDENTITY_S, stdout=output)
            output.seek(0)
            last = output.read().decode(errors="replace").strip().rpartition("\n")[2]
        try:
            found = json.loads(last)
        except ValueError:
            found = identity()
        return {"data": json.dumps(found).encode()}

    def lease(self, message: dict[str, Any]) -> dict[str, Any]:
        """Takes the lease, if it is free. A keeper of the same run, whose connection broke, is told to go."""
        holder = self.cache.lease(message["run"])
        if not holder:
            return {"busy": {}}
        self._refused += 1
        if holder["run"] == message["run"] and self._refused > 1:  # not at once: the file may be of the holder before
            with suppress(ProcessLookupError, PermissionError):
                os.kill(holder["pid"], signal.SIGTERM)
        return {"busy": {"pid": holder["pid"], "for_s": max(0.0, time.time() - holder["since"])}}

    def open(self, message: dict[str, Any]) -> dict[str, Any]:
        """Makes the workspace."""
        if self.folder is None:
            self.folder = self.cache.workspace()
        return {"folder": str(self.folder)}

    def put(self, message: dict[str, Any]) -> dict[str, Any]:
        """Puts a file in place, if it has been sent before."""
        return {"have": self.cache.fetch(message["sha256"], self._path(message["name"]))}

    def store(self, message: dict[str, Any]) -> dict[str, Any]:
        """Takes a file in."""
        to = self._path(message["name"])
        self.cache.store(message["sha256"], self.pipe.chunks())
        if not self.cache.fetch(message["sha256"], to):
            raise CacheError(f"{self.cache.root} does not keep what is written there")
        self.cache.shrink()
        return {}

    def get(self, message: dict[str, Any]) -> None:
        """Sends a file."""
        handle = os.open(self._path(message["name"]), os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            self.pipe.send_file({}, file)

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """Does a job in a fresh process."""
        job, result, errors = self._path("job.json"), self._path("result.json"), self._path("stderr.txt")
        with suppress(FileNotFoundError):
            result.unlink()
        job.write_bytes(self.pipe.data())
        with errors.open("w+b") as stderr:
            code = self._python([str(job)], job.parent, message["timeout_s"], stderr=stderr)
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - 4096))
            words = stderr.read().decode(errors="replace")
        answer = {"code": code, "timed_out": code is None, "stderr": words}
        return {**answer, "data": result.read_bytes() if result.is_file() else b""}

    def _path(self, name: str) -> Path:
        if self.folder is None:
            raise CacheError("no workspace is open")
        return self.folder / plain(name)

    def _python(self, arguments: list[str], folder: Path, timeout_s: float, **streams: Any) -> int | None:
        """Runs the probe in a session of its own, which ends with this call, whatever happens. Gives its exit code;
        None when it took too long."""
        deadline = time.monotonic() + timeout_s
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(
            [self.python, "-E", "-X", "faulthandler", str(self.probe), *arguments],
            cwd=folder,
            env={**environment, **_SET, "ATTAR_KEEPER": str(os.getpid())},
            start_new_session=True,
            **{**nothing, **streams},
        )
        try:
            while process.poll() is None and time.monotonic() < deadline:
                # Asleep until the job's end (SIGCHLD), a message or the deadline: nothing here takes time from the job.
                if self.pipe.wait(deadline - time.monotonic()) and self.pipe.receive().get("op") != "ping":
                    raise GoneError("something was asked while a job ran")
            return process.poll()
        finally:
            with suppress(ProcessLookupError, PermissionError):  # what is left of the group, also after the job's end
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """Removes the workspace and gives the lease back."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.cache.release()


def _told(error: OSError, where: Path | None = None) -> str:
    """What the system refused, where, and what helps."""
    place = f"{error.filename or where}: " if error.filename or where else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{place}{error.strerror or error}" + (f"; {_FULL}" if full else "")


def main(argv: list[str]) -> int:
    """Serves until the other side is gone. `argv[0]` is the probe's zip: it is stored in the cache, and removed."""
    packed, silence_s = Path(argv[0]), float(argv[2])
    probe = packed.read_bytes()
    packed.unlink()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    pipe = Pipe(0, 1, silence_s=silence_s or None, wake=woken)

    def stop(number: int, frame: Any) -> None:
        pipe.stopped = f"stopped by {signal.Signals(number).name}"

    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only the wake-up matters
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    try:
        pipe.write(MARK)
        try:
            cache = Cache()
            path = cache.keep_probe(probe)
        except (CacheError, OSError) as error:
            told = _told(error) if isinstance(error, OSError) else error
            pipe.send({"error": f"no folder for attar's files: {told}"})
            return 1
        keeper = Keeper(pipe, cache, path, os.path.expanduser(argv[3]))  # noqa: PTH111  argv: a command, not a path
        pipe.send({"python": sys.version.split()[0], "root": str(cache.root), "note": cache.note})
        try:
            keeper.serve()
        finally:
            keeper.close()
    except GoneError as gone:
        with suppress(OSError):
            sys.stderr.write(f"{gone}\n")
    return 0
