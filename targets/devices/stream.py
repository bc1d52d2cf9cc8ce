"""The host's end of the stream to a keeper (`targets.probe.keeper`), the same for every kind of device.

A device is a command that starts Python somewhere: here, or at the far end of `ssh`. All else goes through its standard
input and output: the probe's own zip first, then files, jobs and answers. When this process ends, in whatever way, the
stream ends, and with it all that runs on the device.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from targets.devices.bundle import bundle
from targets.errors import DeviceError
from targets.probe.frames import GoneError, Pipe
from targets.probe.keeper import MARK

__all__ = ["NO_ROOM", "Keeper", "LostError", "last_words", "starter", "take_lease", "work"]

_ANSWER_S = 120.0  # for anything but a job: a slow card may take its time
_START_S = 60.0  # for a slow device to start Python
NO_ROOM = "has no room for temporary files: make room there, or let TMPDIR there name a folder on another disk"
_INSTALL = "(pip install numpy onnxruntime), or let connection.python in the target's profile name a Python that has it"

# One line without quotes other than ", and without ! and \: every login shell (sh, csh, fish) passes it on as it is.
# It says when it listens: what came before is a login shell's chatter. Nothing is read ahead, as nothing is sent after
# the zip until the keeper has spoken. "" goes from the path, so that no file in the home folder stands in for a module.
_READY = b"\x1eattar listens\n"
_START = (
    "import sys;sys.version_info<(3,9) and sys.exit("
    '"attar needs Python 3.9 or later on the device, and this is "+sys.version.split()[0]);'
    "sys.path[:]=[p for p in sys.path if p];import atexit,os,runpy,tempfile;"
    'sys.stdout.write(chr(30)+"attar listens"+chr(10));sys.stdout.flush();b=sys.stdin.buffer.read({size});'
    'len(b)=={size} or sys.exit("the probe did not arrive");d,p=tempfile.mkstemp(".pyz","attar-");'
    "atexit.register(lambda:os.path.exists(p) and os.unlink(p));"  # a full disk
    'f=open(d,"wb");f.write(b);f.close();sys.argv[:1]=[p,"keep"];runpy.run_path(p,run_name="__main__")'
)


class LostError(DeviceError):
    """The connection broke, or could not be made just now: another try may do."""


def starter(python: str, silence_s: float) -> list[str]:
    """The command that becomes a keeper, once it has read `bundle()`."""
    return [python, "-E", "-c", _START.format(size=len(bundle())), f"{silence_s:g}", python]


class Keeper:
    """A running keeper.

    Attributes:
        name: how a person calls the device; empty for this machine.

    Args:
        command: starts it, see `starter`.
        explain: (exit code or None, standard error, why it is thought to be gone) -> what to tell the user when it
            did not start.
        silence_s: as given to `starter`; it hears from us several times in this span.
        start_s: how long a start may take.

    Raises:
        DeviceError: it did not start.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        *,
        explain: Callable[[int | None, str, str], DeviceError],
        silence_s: float = 0,
        start_s: float = _START_S,
    ) -> None:
        self.name = name
        self._turn, self._over = threading.Lock(), threading.Event()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `_end`
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is ours to handle; and there is no terminal to ask for a password
                env={**os.environ, "LC_ALL": "C"},  # system messages are told apart by their text
            )
        except OSError:
            self._errors.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._pipe = Pipe(self._out.fileno(), self._in.fileno())
        self._beats = threading.Thread(target=self._beat, args=(silence_s / 6,), daemon=True)
        try:
            try:
                self._pipe.find(_READY, start_s)
                self._pipe.write(bundle())
                self._pipe.find(MARK, start_s)
                self.hello = self._answer(start_s)
            except GoneError as gone:
                code, words = self._end(wait_s=2)
                raise explain(code, words, str(gone)) from gone
            if silence_s:
                self._beats.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the keeper, and waits until it has cleaned up."""
        if not self._over.is_set():
            self._end()

    def ask(
        self,
        op: str,
        data: bytes | BinaryIO = b"",
        *,
        answer_s: float = _ANSWER_S,
        into: BinaryIO | None = None,
        **fields: Any,
    ) -> tuple[dict[str, Any], bytes]:
        """Sends a message and gives its answer: header and data, which goes `into` a file where one is given.

        Raises:
            LostError: the stream is broken.
            DeviceError: the keeper could not do it.
        """
        try:
            with self._turn:
                if isinstance(data, bytes):
                    self._pipe.send({"op": op, **fields}, data)
                else:
                    self._pipe.send_file({"op": op, **fields}, data)
            header = self._answer(answer_s)
            if into is None:
                return header, self._pipe.data()
            for chunk in self._pipe.chunks():
                into.write(chunk)
        except GoneError as gone:
            code, words = self._end()
            how = (
                f"{gone}{last_words(words)}"
                if words.strip() or code is None or code >= 0
                else f"killed by signal {-code}"
            )
            raise LostError(how) from gone
        return header, b""

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        header = self._pipe.receive(timeout_s)
        if "error" in header:
            raise self._fault(str(header["error"]))
        return header

    def _fault(self, text: str) -> DeviceError:
        return DeviceError(f"{self.name}: {text}" if self.name else text)

    def _beat(self, every_s: float) -> None:
        while not self._over.wait(every_s):
            try:
                with self._turn:
                    self._pipe.send({"op": "ping"})
            except (GoneError, OSError, ValueError):
                return  # whoever waits for an answer finds out, too

    def _kill(self) -> None:
        """The whole group: a jump host makes a second ssh."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self, wait_s: float = 10) -> tuple[int | None, str]:
        """Closes the stream and waits; gives the exit code (None: it had to be killed) and standard error."""
        self._over.set()
        if self._beats.is_alive():
            self._beats.join(1)
            if self._beats.is_alive():  # held by a dead connection
                self._kill()
                self._beats.join()
        self._pipe.close()
        self._in.close()
        code: int | None
        try:
            code = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if self._process.poll() is None:
                self._kill()
                self._process.wait()
            self._out.close()
        with self._errors:
            self._errors.seek(0)
            return code, self._errors.read(1 << 16).decode(errors="replace").replace("\r", "")


def take_lease(keeper: Keeper, run: str, wait_s: float, say: Callable[[str], None]) -> None:
    """Returns once this run may measure there.

    Raises:
        DeviceError: another run has not ended within `wait_s`.
    """
    name = keeper.name or "this machine"
    deadline, pause_s, told = time.monotonic() + wait_s, 0.1, False
    while busy := keeper.ask("lease", run=run)[0]["busy"]:
        who = f"pid {busy['pid']}, for {_span(busy['for_s'])} so far"
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"{name} is measuring for another run ({who}), and two at once would disturb each other; "
                f"wait until it has ended, end it there (kill {busy['pid']}), "
                f"or wait longer than connection.lease_wait_s = {wait_s:g} s"
            )
        if not told and pause_s > 0.1:  # what ends right away is not worth a word
            say(f"waiting for another run on {name} ({who})")
            told = True
        time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
        pause_s = min(2 * pause_s, 2.0)


def work(keeper: Keeper, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Runs a job in the keeper's workspace, and gives the probe's answer.

    Raises:
        LostError: the stream is broken.
        DeviceError: the probe failed, gave no answer or took too long.
    """
    data = json.dumps({**job, "result": "result.json"}).encode()
    header, answer = keeper.ask("run", data, answer_s=timeout_s + _ANSWER_S, timeout_s=timeout_s)
    where = f"{keeper.name}: " if keeper.name else ""
    if header["timed_out"]:
        words = last_words(header["stderr"])
        raise DeviceError(f"{where}the probe did not end within {timeout_s:g} s and was stopped{words}")
    found = _read(answer)
    if "error" in found:
        text = str(found["error"])
        missing = re.search(r"\b(numpy|onnxruntime) is not installed for ", text)
        raise DeviceError(f"{where}{text}; install it there {_INSTALL}" if missing else where + text)
    code = header["code"]
    if code != 0 or not found:
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
        raise DeviceError(f"{where}the probe {how} and gave no answer{last_words(header['stderr'])}")
    return found


def _read(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _signal(number: int) -> str:
    names = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 9: "SIGKILL (out of memory?)", 11: "SIGSEGV", 15: "SIGTERM"}
    return names.get(number, f"signal {number}")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def last_words(words: str, lines: int = 8) -> str:
    """The end of what a process said, to be put after a fault; empty if it said nothing."""
    text = words.strip()
    return "; its last words:\n" + "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) if text else ""
