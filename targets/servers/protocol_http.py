"""The Open Inference Protocol over HTTP by the standard library, on one connection that is kept.

Tensors travel as raw bytes where the server takes them, else as JSON numbers: both are exact for float32.
https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from targets.servers.protocol import Address, Metadata, Tensor, answer, broken, the_input, unknown

__all__ = ["HttpEndpoint", "lost", "request"]

_MOST = 2**28  # bytes of an answer: 64 million numbers
_LENGTH = "Inference-Header-Content-Length"
_ID = "1"  # KServe's server fails on requests without one


def request(
    source: str, target: str, inputs: NDArray[np.float32], *, binary: bool = True
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request.

    Args:
        source, target: names of the input and of the output wanted.
    """
    tensor: dict[str, Any] = {"name": source, "shape": list(inputs.shape), "datatype": "FP32"}
    wanted: dict[str, Any] = {"name": target, "parameters": {"binary_data": binary}}
    raw = np.ascontiguousarray(inputs, "<f4").tobytes() if binary else b""
    tensor |= {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": inputs.ravel().tolist()}
    head = json.dumps({"id": _ID, "inputs": [tensor], "outputs": [wanted]}).encode()
    if not binary:
        return head, {"Content-Type": "application/json"}
    return head + raw, {"Content-Type": "application/octet-stream", _LENGTH: str(len(head))}


class HttpEndpoint:
    """See `targets.servers.protocol.Endpoint`."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._wire = kind(address.host, address.port, timeout=timeout_s)
        self._address, self._metadata = address, None
        self._binary, self._settled, self._ended = True, False, False
        self._root = quote(address.prefix) + "/v2"
        version = f"/versions/{quote(address.version, safe='')}" if address.version else ""
        self._model = f"{self._root}/models/{quote(address.model, safe='')}{version}"

    _metadata: Metadata | None

    @property
    def url(self) -> str:
        """Its address, whole."""
        return str(self._address)

    @property
    def how(self) -> str:
        """How tensors travel."""
        return "HTTP, binary tensors" if self._binary else "HTTP, JSON"

    def ready(self) -> bool:
        """Whether the model takes requests."""
        return self._ask("GET", f"{self._model}/ready")[0] == 200

    def server(self) -> dict[str, Any]:
        """What the server tells of itself: name, version, extensions.

        Raises:
            DeviceError: no server answers there, or it speaks something else.
        """
        status, _, data = self._ask("GET", self._root)
        found = self._object(data) if status == 200 else {}
        if "name" not in found:
            what = f"GET {self._root} is answered by {status}: no Open Inference Protocol v2 there"
            raise broken(self._address, what, "give the address of the server's v2 HTTP port")
        return found

    def metadata(self) -> Metadata:
        """What the model takes and gives."""
        if self._metadata is None:
            server = self.server()
            status, _, data = self._ask("GET", self._model)
            if status != 200:
                raise unknown(self._address, _words(status, data), self._models())
            found = self._object(data)
            try:
                if "binary_tensor_data" in (server.get("extensions") or ()):
                    self._settled = True
                self._metadata = Metadata(
                    str(found["name"]),
                    tuple(map(str, found.get("versions") or ())),
                    tuple(map(_tensor, found.get("inputs") or ())),
                    tuple(map(_tensor, found.get("outputs") or ())),
                    f"{server['name']} {server.get('version', '')}".strip(),
                )
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise broken(self._address, f"its metadata are not in the protocol's form: {error!r}") from None
        return self._metadata

    def infer(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(k, *input shape) -> (k, ...), in one request."""
        metadata = self.metadata()
        names = the_input(self._address, metadata).name, metadata.outputs[0].name
        body, headers = request(*names, inputs, binary=self._binary)
        status, back, data = self._ask("POST", f"{self._model}/infer", body, headers)
        if status != 200 and self._binary and not self._settled:  # MLServer: 422 for whatever is not JSON
            body, headers = request(*names, inputs, binary=False)
            status, back, data = self._ask("POST", f"{self._model}/infer", body, headers)
            self._binary = status != 200
        if status != 200:
            what = f"refused inputs of shape {inputs.shape}: {_words(status, data)}"
            raise broken(
                self._address, what, f"`curl {self._address}` says what it takes; the server's log may say more"
            )
        self._settled = True
        return self._output(names[1], inputs, back, data)

    def close(self) -> None:
        """Ends the connection, also for a thread that waits for an answer there."""
        self._ended = True
        if (kept := self._wire.sock) is not None:
            with suppress(OSError):
                kept.shutdown(socket.SHUT_RDWR)  # a thread that reads there wakes, unlike by close()
        self._wire.close()

    def _output(
        self, name: str, inputs: NDArray[np.float32], headers: Mapping[str, str], data: bytes
    ) -> NDArray[np.float32]:
        length = next((value for name, value in headers.items() if name.lower() == _LENGTH.lower()), "")
        head = int(length) if length.isdecimal() and len(length) < 12 else len(data)
        found, at = self._object(data[:head]), head
        try:
            for output in found["outputs"]:
                size = (output.get("parameters") or {}).get("binary_data_size")
                if output["name"] == name:
                    values = data[at : at + size] if size is not None else output["data"]
                    return answer(self._address, inputs, output["datatype"], output["shape"], values)
                at += size or 0
        except (KeyError, TypeError, AttributeError) as error:
            raise broken(self._address, f"its answer is not in the protocol's form: {error!r}") from None
        raise broken(self._address, f"its answer holds no output {name!r}")

    def _models(self) -> Iterator[str]:
        """Names of the models that the server has, by what servers have beside the protocol.

        https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
        """
        status, _, data = self._ask(
            "POST", f"{self._root}/repository/index", b"{}", {"Content-Type": "application/json"}
        )
        found = _parsed(data) if status == 200 else None
        if isinstance(found, list):
            yield from (str(row["name"]) for row in found if isinstance(row, dict) and "name" in row)
            return
        status, _, data = self._ask("GET", f"{self._root}/models")  # KServe
        found = _parsed(data) if status == 200 else None
        if isinstance(found, dict) and isinstance(found.get("models"), list):
            yield from map(str, found["models"])

    def _object(self, data: bytes) -> dict[str, Any]:
        found = _parsed(data)
        if not isinstance(found, dict):
            raise broken(self._address, f"answered {data[:60]!r}, where a JSON object was expected")
        return found

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. A kept connection that the server has ended meanwhile is made anew, once."""
        while True:
            kept = self._wire.sock is not None  # it is not the second time: a failure closes it
            try:
                self._wire.request(method, path, body or None, dict(headers or {}))
                reply = self._wire.getresponse()
                data = reply.read(_MOST + 1)
            except (http.client.HTTPException, OSError) as error:
                self._wire.close()
                if not kept or self._ended or isinstance(error, TimeoutError):
                    told = lost(self._address, error, self._wire.timeout or 0.0, f"grpc://{self._address.place}/NAME")
                    raise broken(self._address, *told) from None
            else:
                if len(data) > _MOST:
                    self._wire.close()
                    raise broken(self._address, f"its answer is larger than {_MOST // 2**20} MB")
                return reply.status, dict(reply.headers.items()), data


def lost(address: Address, error: Exception, timeout_s: float, grpc: str) -> tuple[str, str]:
    """What became of a request without an answer, and what to do: the words of a fault.

    Args:
        timeout_s: how long it was waited for.
        grpc: what to give where this is a gRPC port.
    """
    place = address.place
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens on {place}", "start the server, or give its HTTP port"
    if isinstance(error, TimeoutError):
        what = f"{place} did not answer within {timeout_s:g} s"
        return what, "is the server up, and no firewall between? see its own log"
    if isinstance(error, ssl.SSLCertVerificationError):
        what = f"the certificate of {place} is not trusted: {error.verify_message}"
        return what, "SSL_CERT_FILE=FILE names the certificates (PEM) to trust"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        what = f"{place} does not speak HTTPS ({error.reason or 'no TLS'})"
        return what, f"if it speaks plain HTTP: {address}".replace("https", "http", 1)
    if isinstance(error, http.client.HTTPException | ConnectionError | ssl.SSLEOFError):
        what = f"{place} broke off without an answer over HTTP ({type(error).__name__})"
        return what, f"did the server end? see its own log; if this is its gRPC port: {grpc}"
    return f"{place} cannot be reached: {error}", "check the host's name and the network"


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _tensor(values: Mapping[str, Any]) -> Tensor:
    return Tensor(str(values["name"]), str(values["datatype"]), tuple(int(size) for size in values["shape"]))


def _words(status: int, data: bytes) -> str:
    """What a server said of an error, on one line."""
    found = _parsed(data)
    said = (found.get("error") or found.get("detail")) if isinstance(found, dict) else None
    text = " ".join(str(said or data[:500].decode("utf-8", "replace")).split())
    return (text if len(text) <= 300 else text[:297] + "...") + f" (HTTP {status})"
