"""Triton's model control: which models are there, load one, unload one. By the standard library.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import http.client
import json
import select
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from targets.errors import DeviceError, Fault, InputError
from targets.servers.protocol import Address

__all__ = ["Control", "Standing"]

_STEP_S = 1.0  # between looks at a server that has not answered yet
_HEALTH_S = 3.0  # for its answer that it lives; it gives that within milliseconds while it loads
_MISSES = 3  # looks in a row without one
_TRITON = "give the HTTP port of a Triton with --model-control-mode=explicit"


@dataclass(frozen=True)
class Standing:
    """One version of a model, as the server sees it. `state`: READY, UNAVAILABLE, LOADING or UNLOADING."""

    name: str
    version: str
    state: str
    reason: str


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
        self._address = Address.of(url)
        if self._address.scheme == "grpc":
            raise InputError(
                Fault("models are loaded over HTTP", file=url, help="give the server's HTTP port: http://")
            )
        self._timeout_s = timeout_s
        self._lives = False  # whether it has said so while it owed an answer: one with a single HTTP thread cannot
        self._missed = 0
        self.url = f"{self._address.scheme}://{self._address.place}{self._address.prefix}"

    def index(self) -> tuple[Standing, ...]:
        """Every version of every model in the repository.

        Raises:
            DeviceError: no server answers there, or one without a model repository.
        """
        rows = self._ask("POST", "/v2/repository/index", {})
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self._fault("answered no list of models: no model control there", _TRITON)
        words = ("name", "version", "state", "reason")
        return tuple(Standing(*(str(row.get(word, "")) for word in words)) for row in rows)

    def serving(self, name: str) -> tuple[int, ...]:
        """Versions of a model that answer now."""
        rows = (row for row in self.index() if row.name == name and row.state == "READY")
        return tuple(sorted(int(row.version) for row in rows if row.version.isdecimal() and len(row.version) < 20))

    def load(self, name: str) -> None:
        """Loads a model as it lies in the repository now. One that is loaded already serves until the new one does.

        Raises:
            DeviceError: the server refuses the model, with its words; or it stopped answering.
        """
        self._ask("POST", f"/v2/repository/models/{quote(name, safe='')}/load", {})

    def unload(self, name: str) -> None:
        """Takes a model out of service."""
        self._ask("POST", f"/v2/repository/models/{quote(name, safe='')}/unload", {})

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> Any:
        wire = self._wire(self._timeout_s)
        try:
            data = json.dumps(body).encode()
            wire.request(method, quote(self._address.prefix) + path, data, {"Content-Type": "application/json"})
            self._wait(wire, path)
            reply = wire.getresponse()
            text = reply.read()
        except ConnectionRefusedError:
            raise self._fault("nothing listens there", "start the server, or give its HTTP port") from None
        except (http.client.HTTPException, OSError, UnicodeError) as error:
            raise self._fault(f"did not answer: {error or type(error).__name__}", "see the server's own log") from None
        finally:
            wire.close()
        try:
            found = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            found = None
        if reply.status == 200 and (found is not None or not text.strip()):
            return found
        said = found.get("error") if isinstance(found, dict) else None
        told = " ".join(str(said or text[:300].decode("utf-8", "replace")).split()) or "nothing"
        if "not allowed" in told:
            raise self._fault(f"said: {told}", "start Triton with --model-control-mode=explicit")
        if said is None:
            what = f"answered {reply.status} to {path}: no model control there"
            raise self._fault(what, _TRITON)
        raise self._fault(f"said: {told}", "see the server's own log")

    def _wire(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        return kind(self._address.host, self._address.port, timeout=timeout_s)

    def _wait(self, wire: http.client.HTTPConnection, path: str) -> None:
        """Returns once an answer begins.

        Raises:
            DeviceError: the server died meanwhile.
            TimeoutError: it lives, and has not answered in time.
        """
        end = time.monotonic() + self._timeout_s
        while not select.select([wire.sock], [], [], _STEP_S)[0]:
            self._missed = 0 if self._look() else self._missed + 1
            if self._missed >= _MISSES:
                raise self._fault(f"stopped answering while {path} was awaited", "see the server's own log")
            if time.monotonic() > end:
                raise TimeoutError(f"nothing within {self._timeout_s:g} s")

    def _look(self) -> bool:
        """Whether the server lives, as far as can be told: any answer is a sign of it."""
        wire = self._wire(_HEALTH_S)
        try:
            wire.connect()
        except OSError:
            return False
        try:
            wire.request("GET", quote(self._address.prefix) + "/v2/health/live")
            wire.getresponse()
        except (http.client.HTTPException, OSError):
            return not self._lives
        finally:
            wire.close()
        self._lives = True
        return True

    def _fault(self, what: str, help: str) -> DeviceError:
        return DeviceError(str(Fault(what, file=self.url, help=help)))
