"""Triton's model control: which models are there, load one, unload one. By the standard library.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

from targets.errors import DeviceError, Fault, InputError
from targets.servers.protocol import Address, broken
from targets.servers.protocol_http import lost

__all__ = ["Control"]

T = TypeVar("T")

_MOST = 2**24  # bytes of an answer: an index of 100 thousand versions
_CONNECT_S = 10.0
_STEP_S = 1.0  # between looks at a server that has not answered yet
_HEALTH_S = 3.0  # for its answer that it lives; it gives that within milliseconds while it loads
_MISSES = 3  # looks in a row without one
_TRITON = "give the HTTP port of a Triton with --model-control-mode=explicit"


class Control:
    """The model control of one server; it must have been started with --model-control-mode=explicit.

    While an answer is awaited the server is asked whether it lives: one that was killed may leave children behind that
    hold the connection open.

    Args:
        url: http://host:port.
        timeout_s: for one answer; loading a model is one.

    Raises:
        InputError: no such URL.
    """

    def __init__(self, url: str, timeout_s: float = 300.0) -> None:
        self._address = replace(Address.of(url), model="", version="")
        if self._address.scheme == "grpc":
            raise InputError(
                Fault("models are loaded over HTTP", file=url, help="give the server's HTTP port: http://")
            )
        self._timeout_s = timeout_s
        self._lives = False  # whether it has said so while it owed an answer: one with a single HTTP thread cannot
        self.url = str(self._address)

    def serving(self, name: str) -> tuple[int, ...]:
        """Versions of a model that answer now.

        Raises:
            DeviceError: no server answers there, or one without a model repository.
        """
        rows = self._ask("/v2/repository/index")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self._fault("answered no list of models: no model control there", _TRITON)
        found = [str(row.get("version")) for row in rows if (row.get("name"), row.get("state")) == (name, "READY")]
        return tuple(sorted(int(version) for version in found if version.isdecimal() and len(version) < 20))

    def load(self, name: str) -> None:
        """Loads a model as it lies in the repository now. One that is loaded already serves until the new one does.

        Raises:
            DeviceError: the server refuses the model, with its words; or it stopped answering.
        """
        self._ask(f"/v2/repository/models/{quote(name, safe='')}/load")

    def unload(self, name: str) -> None:
        """Takes a model out of service."""
        self._ask(f"/v2/repository/models/{quote(name, safe='')}/unload")

    def watched(self, job: Callable[[], T], end: Callable[[], None], what: str, timeout_s: float = math.inf) -> T:
        """What a job gives that waits for the server, which is asked meanwhile whether it lives.

        Args:
            job: run in a thread of its own.
            end: ends its waiting, where it is no longer wanted.
            what: it waits for, in a fault's words.

        Raises:
            DeviceError: the server died meanwhile.
            TimeoutError: it lives, and has not answered in time.
        """
        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(job)
            try:
                self._wait(doing, what, timeout_s)
            except BaseException:  # Ctrl-C, too
                end()
                raise
            return doing.result()

    def _ask(self, path: str) -> Any:
        """What the server answers to a request, from JSON; None where it says nothing."""
        wire, limit_s = self._wire(_CONNECT_S), _CONNECT_S
        try:
            with closing(wire):
                wire.connect()
                reached = wire.sock
                reached.settimeout(None)  # it is watched
                limit_s = self._timeout_s

                def answer() -> tuple[int, bytes]:
                    kind = {"Content-Type": "application/json"}
                    wire.request("POST", quote(self._address.prefix) + path, b"{}", kind)
                    reply = wire.getresponse()
                    return reply.status, reply.read(_MOST + 1)

                def end() -> None:
                    with suppress(OSError):
                        reached.shutdown(socket.SHUT_RDWR)  # a thread that reads there wakes, unlike by close()

                status, text = self.watched(answer, end, path, self._timeout_s)
        except (http.client.HTTPException, OSError, UnicodeError) as error:
            raise self._fault(*lost(self._address, error, limit_s, "give its HTTP port")) from None
        if len(text) > _MOST:
            raise self._fault(f"answered more than {_MOST // 2**20} MB to {path}: no model control there", _TRITON)
        try:
            found = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            found = None
        if status == 200 and (found is not None or not text.strip()):
            return found
        said = found.get("error") if isinstance(found, dict) else None
        told = " ".join(str(said or text[:300].decode("utf-8", "replace")).split()) or "nothing"
        if "not allowed" in told:
            raise self._fault(f"said: {told}", "start Triton with --model-control-mode=explicit")
        if said is None:
            what = f"answered {status} to {path}: no model control there"
            raise self._fault(what, _TRITON)
        raise self._fault(f"said: {told}", "see the server's own log")

    def _wire(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        return kind(self._address.host, self._address.port, timeout=timeout_s)

    def _wait(self, doing: Future[T], what: str, timeout_s: float) -> None:
        until, missed, answered = time.monotonic() + timeout_s, 0, False
        while not wait([doing], _STEP_S).done:
            self._lives |= answered  # it still owes: that was no answer given after the one that is awaited
            reached, answered = self._look()
            missed = 0 if answered or (reached and not self._lives) else missed + 1
            if missed >= _MISSES:
                raise self._fault(f"stopped answering while {what} was awaited", "see the server's own log")
            if time.monotonic() > until:
                raise TimeoutError(f"nothing whole within {timeout_s:g} s")

    def _look(self) -> tuple[bool, bool]:
        """Whether the server was reached, and whether it answered anything: that is a sign that it lives."""
        with closing(self._wire(_HEALTH_S)) as wire:
            reached = False
            try:
                wire.connect()
                reached = True
                wire.request("GET", quote(self._address.prefix) + "/v2/health/live")
                wire.getresponse()
            except (http.client.HTTPException, OSError):
                return reached or wire.sock is not None, False  # all but TLS, which takes an answer
        return True, True

    def _fault(self, what: str, help: str) -> DeviceError:
        return broken(self._address, what, help)
