"""A device behind SSH, reached by OpenSSH's own client: what works as `ssh HOST` works here, with the same aliases,
keys, agent and jump hosts. Only Python, numpy and onnxruntime are needed there, and no SFTP.

Host keys are always checked, and nothing is ever asked: a key or an agent logs in, or nobody does. What the device
keeps is described in `targets.probe.cache`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from targets.devices.ssh_faults import explain
from targets.devices.stream import Keeper, LostError, starter, take_lease, work
from targets.errors import DeviceError
from targets.probe.cache import CacheError, plain
from targets.target import Connection, Target

__all__ = ["SshDevice", "SshWorkspace", "command"]

_IDENTITY_S = 300.0  # a slow card, and a runtime with many libraries
_SILENCE_S = 30.0  # after which the device takes this machine for gone; ssh here takes 15 s to notice the same
_PAUSE_S = 1.0  # before the first new try; doubled for each further one
_RETAKE_S = 2 * _SILENCE_S  # until the lease of our own broken connection is free, at the latest

T = TypeVar("T")


def _silent(_: str) -> None: ...


def command(address: str, connection: Connection) -> list[str]:
    """The command line that starts a keeper at ssh://[user@]host[:port]."""
    match = re.fullmatch(r"ssh://(?:([^@]+)@)?(?:\[(.+)\]|([^:]+))(?::(\d+))?", address)
    if not match:
        raise DeviceError(f"{address!r} is no address of a device; they look like ssh://[user@]host[:port]")
    user, literal, host, port = match.groups()
    words = ["ssh", "-T", "-a", "-x", *(("-p", port) if port else ()), *(("-l", user) if user else ())]
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "ConnectTimeout": str(max(1, round(connection.connect_timeout_s))),
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "LogLevel": "INFO",  # its words tell the faults apart
    }
    if connection.identity_file:
        options |= {"IdentityFile": _file(connection.identity_file), "IdentitiesOnly": "yes"}
    if connection.known_hosts:
        options |= {"UserKnownHostsFile": _file(connection.known_hosts), "GlobalKnownHostsFile": "none"}
    for key, value in options.items():
        words += ["-o", f"{key}={value}"]
    python, *rest = starter(connection.python or "python3", _SILENCE_S)
    start = "~/" + shlex.quote(python[2:]) if python.startswith("~/") else shlex.quote(python)
    return [*words, "--", literal or host, f"exec {start} {shlex.join(rest)}"]


def _file(path: str) -> str:
    """A path as ssh reads it in an option: quoted, and % as itself."""
    return '"' + path.replace("%", "%%") + '"'


class SshDevice:
    """The device at `target.device`, reached as `target.connection` says."""

    def __init__(self, target: Target) -> None:
        self.name = target.device.removeprefix("ssh://")
        self._address, self._connection = target.device, target.connection
        self._identity: dict[str, Any] = {}

    @contextmanager
    def open(self, say: Callable[[str], None] = _silent) -> Iterator[SshWorkspace]:
        """A new folder there, removed at the end; see `targets.devices.Device`."""
        with tempfile.TemporaryDirectory(prefix="attar-") as folder:
            workspace = SshWorkspace(self, self._connection, Path(folder), say)
            try:
                workspace.connect(self._connection.lease_wait_s)
                yield workspace
            finally:
                workspace.close()

    def identity(self) -> dict[str, Any]:
        """Processor, usable cores, and what its Python has."""
        if not self._identity:
            with closing(self.start()) as keeper:
                try:
                    self._identity = json.loads(keeper.ask("identity", answer_s=_IDENTITY_S)[1])
                except LostError as lost:
                    raise LostError(f"the connection to {self.name} was lost: {lost}") from lost
        return dict(self._identity)

    def start(self) -> Keeper:
        """A keeper there, without lease or workspace.

        Raises:
            LostError: it could not be reached just now.
            DeviceError: it cannot be reached like this, or has no usable Python.
        """
        try:
            return Keeper(
                command(self._address, self._connection),
                self.name,
                explain=lambda code, words, why: explain(self._address, self._connection, code, words, why),
                silence_s=_SILENCE_S,
                start_s=self._connection.connect_timeout_s + 60,
            )
        except OSError as error:
            raise DeviceError(
                f"cannot start ssh to reach {self.name}: {error.strerror or error}; "
                "install OpenSSH's client (apt-get install openssh-client)"
            ) from error


class SshWorkspace:
    """A folder there; see `targets.devices.Workspace`. A broken connection is made anew, and the work done again."""

    def __init__(self, device: SshDevice, connection: Connection, folder: Path, say: Callable[[str], None]) -> None:
        self._device, self._connection, self._folder, self._say = device, connection, folder, say
        self._run = uuid.uuid4().hex
        self._keeper: Keeper | None = None
        self._put: dict[str, tuple[Path, str]] = {}

    def connect(self, lease_wait_s: float) -> Keeper:
        """The keeper, with the lease and with all files in place."""
        if self._keeper is None:
            keeper = self._device.start()
            try:
                if (note := keeper.hello["note"]) and not self._put:
                    self._say(f"{self._device.name}: {note}")
                take_lease(keeper, self._run, lease_wait_s, self._say)
                keeper.ask("open")
                for name, (source, digest) in self._put.items():
                    _send(keeper, source, name, digest)
            except LostError as lost:
                raise LostError(f"the connection to {self._device.name} was lost while it was set up: {lost}") from lost
            except BaseException:
                keeper.close()
                raise
            self._keeper = keeper
        return self._keeper

    def close(self) -> None:
        """Ends the connection; the device removes the folder."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def put(self, source: Path, name: str) -> None:
        """Sends a file, unless the device has kept it from before."""
        name = _plain(name)
        try:
            with source.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DeviceError(f"cannot send {source} to {self._device.name}: {error.strerror or error}") from error
        self._steadily(f"sending {name}", lambda keeper: _send(keeper, source, name, digest))
        self._put[name] = (source, digest)

    def get(self, name: str) -> Path:
        """A file that the probe wrote."""
        path = self._folder / _plain(name)
        if not path.exists():
            self._steadily(f"fetching {name}", lambda keeper: self._fetch(keeper, name))
        return path

    def run(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Runs the probe there. Outputs are fetched at once: after a lost connection they would be gone."""

        def attempt(keeper: Keeper) -> dict[str, Any]:
            for old in self._folder.iterdir():
                old.unlink()
            answer = work(keeper, job, timeout_s)
            for found in answer.get("models", {}).values():
                if "outputs" in found:
                    self._fetch(keeper, found["outputs"])
            return answer

        return self._steadily("measuring", attempt)

    def _fetch(self, keeper: Keeper, name: str) -> None:
        path = self._folder / _plain(name)
        aside = path.with_name(path.name + ".part")
        with aside.open("wb") as file:
            keeper.ask("get", name=name, into=file)
        aside.rename(path)

    def _steadily(self, doing: str, action: Callable[[Keeper], T]) -> T:
        """The action's result; it is done again on a new connection as often as `connection.retries` allows."""
        name, retries = self._device.name, self._connection.retries
        for lost in range(retries + 1):
            try:
                wait_s = max(self._connection.lease_wait_s, _RETAKE_S)
                return action(self.connect(wait_s))
            except LostError as error:
                self.close()
                why = str(error)
            if lost < retries:
                pause_s = _PAUSE_S * 2**lost
                self._say(f"the connection to {name} was lost while {doing}; trying again in {pause_s:g} s")
                time.sleep(pause_s)
        times = "once" if retries == 0 else f"{retries + 1} times"
        raise DeviceError(
            f"the connection to {name} was lost {times} while {doing}: {why}\n"
            f"steps that were finished before are stored: give the same command again when {name} is back"
        )


def _send(keeper: Keeper, source: Path, name: str, digest: str) -> None:
    if keeper.ask("put", name=name, sha256=digest)[0]["have"]:
        return
    with source.open("rb") as file:
        keeper.ask("store", file, name=name, sha256=digest)


def _plain(name: str) -> str:
    try:
        return plain(name)
    except CacheError as error:
        raise DeviceError(str(error)) from None
