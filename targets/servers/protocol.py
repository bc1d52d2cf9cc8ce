"""Models behind an Open Inference Protocol v2 server: is it ready, what does it take, what does it answer.

    http://host:port/v2/models/NAME[/versions/N]     https:// likewise
    http://host:port                                 with the model's name given beside
    grpc://host:port/NAME[/N]                        needs tritonclient: the extra `serve`

Triton, KServe, MLServer, OpenVINO Model Server and others speak it.
https://github.com/open-inference/open-inference-protocol/tree/main/specification/protocol
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from targets.errors import DeviceError, Fault, InputError, nearest

__all__ = ["Address", "Endpoint", "Metadata", "Tensor", "answer", "broken", "connect", "the_input", "unknown"]

TIMEOUT_S = 60.0
FORMS = "http://HOST:PORT/v2/models/NAME[/versions/N], http://HOST:PORT or grpc://HOST:PORT/NAME"

_MODEL = r"(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?"
_PATHS = {
    "http": re.compile(rf"(?P<prefix>(/(?!v2(/|$))[^/]+)*)(/v2(/models/{_MODEL}(/(infer|ready))?)?)?/?"),
    "grpc": re.compile(r"(/(?P<model>[^/]+)(/(?P<version>[^/]+))?)?/?"),
}


@dataclass(frozen=True)
class Tensor:
    """An input or output as the server tells of it.

    Attributes:
        datatype: in the protocol's words: "FP32".
        shape: -1 where a size is open.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Metadata:
    """What a server tells of a model, and of itself ("triton 2.51.0")."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    server: str


class Endpoint(Protocol):
    """One model on one server, over one connection. Not to be shared by threads."""

    @property
    def url(self) -> str:
        """Its address, whole."""

    @property
    def how(self) -> str:
        """How tensors travel: "HTTP, binary tensors", "HTTP, JSON" or "gRPC". Settled by the first request."""

    def ready(self) -> bool:
        """Whether the model takes requests; False where it is unknown or still loading.

        Raises:
            DeviceError: no server answers there.
        """

    def metadata(self) -> Metadata:
        """What the model takes and gives.

        Raises:
            InputError: the server has no such model.
            DeviceError: no server answers there, or the model is not ready.
        """

    def infer(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(k, *input shape) -> (k, ...), the model's first output, in one request.

        Raises:
            InputError: the server has no such model, or one that takes something else than one float32 input.
            DeviceError: it does not answer, refuses the inputs, or answers something else.
        """

    def close(self) -> None:
        """Ends the connection."""


@dataclass(frozen=True)
class Address:
    """Where a model is. `prefix`: a path before /v2, as gateways have one; `version`: empty for the server's choice."""

    scheme: str
    host: str
    port: int
    model: str = ""
    version: str = ""
    prefix: str = ""

    @staticmethod
    def of(url: str) -> Address:
        """The address that a URL gives.

        Raises:
            InputError: it is none.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            (parts.hostname or "").encode("idna")  # as the socket will: "a..b" is none
        except ValueError as error:
            raise _no_address(url, f"is no URL: {error}") from None
        if parts.scheme not in ("http", "https", "grpc"):
            raise _no_address(url, "must begin with http://, https:// or grpc://")
        if parts.username is not None:
            raise _no_address(url.rpartition("@")[2], "had a user or password before @: none is taken")
        if not parts.hostname or any(c.isspace() or not c.isprintable() for c in url):
            raise _no_address(url, "names no host")
        if parts.query or parts.fragment:
            raise _no_address(url, "has something after ? or #")
        found = _PATHS["grpc" if parts.scheme == "grpc" else "http"].fullmatch(parts.path)
        if found is None:
            raise _no_address(url, f"has the path {parts.path}, which is none of the protocol's")
        if port is None and parts.scheme == "grpc":
            raise _no_address(url, "names no port")
        known = {name: unquote(text) for name, text in found.groupdict().items() if text}
        return Address(parts.scheme, parts.hostname, port or {"https": 443}.get(parts.scheme, 80), **known)

    @property
    def place(self) -> str:
        """Host and port, as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def here(self) -> bool:
        """Whether the server runs on this machine, as far as the address tells."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        at = f"{self.scheme}://{self.place}{self.prefix}"
        if not self.model:
            return at
        version = self.version and ("/" if self.scheme == "grpc" else "/versions/") + self.version
        models = "" if self.scheme == "grpc" else "/v2/models"
        return f"{at}{models}/{self.model}{version}"


def _no_address(url: str, what: str) -> InputError:
    return InputError(Fault(what, file=url, help=f"an endpoint is {FORMS}"))


def connect(url: str, *, model: str = "", timeout_s: float = TIMEOUT_S) -> Endpoint:
    """The endpoint that a URL names. Nothing is reached yet.

    Args:
        model: its name, where the URL has none.
        timeout_s: for one answer.

    Raises:
        InputError: no such URL, no model's name, or gRPC without tritonclient.
    """
    address = Address.of(url)
    address = address if address.model else replace(address, model=model)
    if not address.model:
        raise _no_address(url, "names no model")
    if address.scheme == "grpc":
        from targets.servers.protocol_grpc import GrpcEndpoint

        return GrpcEndpoint(address, timeout_s)
    from targets.servers.protocol_http import HttpEndpoint

    return HttpEndpoint(address, timeout_s)


# ---- what both ways of asking share


def broken(address: Address, what: str, help: str = "") -> DeviceError:
    """The fault of a server."""
    return DeviceError(str(Fault(what, file=str(address), help=help or "see the server's own log")))


def unknown(address: Address, said: str, models: Iterable[str]) -> InputError | DeviceError:
    """The fault of a model that the server does not tell of; `models`: those that it has, as far as it says."""
    models = sorted(set(models))
    if address.model in models and address.version:
        what = f"the server does not serve version {address.version!r} of {address.model!r}: {said}"
        return InputError(Fault(what, file=str(address), help="without a version, the URL is that of the newest"))
    if address.model in models:
        what = f"the server has {address.model!r} and does not serve it now: {said}"
        http = "http://HOST:PORT" if address.scheme == "grpc" else f"{address.scheme}://{address.place}{address.prefix}"
        help = f"a Triton with explicit model control loads it by `attar ship DIR DEST --to triton --load {http}`; "
        return broken(address, what, f"{help}else see the server's own log")
    has = nearest(address.model, models) if models else "give the name that the server knows it by"
    return InputError(Fault(f"the server has no model {address.model!r}: {said}", file=str(address), help=has))


def the_input(address: Address, metadata: Metadata) -> Tensor:
    """The one input of a model that attar can feed.

    Raises:
        InputError: it has none, several, or none of float32.
    """
    inputs = metadata.inputs
    if len(inputs) == 1 and inputs[0].datatype == "FP32" and metadata.outputs:
        return inputs[0]
    told = "; ".join(map(str, inputs)) or "no inputs"
    what = f"takes {told}, where one input of FP32 is expected"
    if len(inputs) == 1 and inputs[0].datatype == "FP32":
        what = "tells of no outputs"
    raise InputError(Fault(what, file=str(address), help="give the URL of a model that attar made"))


def answer(
    address: Address, inputs: NDArray[np.float32], datatype: str, shape: Sequence[int], values: object
) -> NDArray[np.float32]:
    """An output as an array, once it is float32 and has one row for each input.

    Args:
        shape: as the server tells it.
        values: its raw bytes, little-endian; or plain numbers, nested or not.

    Raises:
        DeviceError: it is something else.
    """
    if datatype != "FP32" or not shape or shape[0] != len(inputs):
        what = f"answered {datatype} of shape ({', '.join(map(str, shape))}) to {len(inputs)} inputs"
        raise broken(address, what, f"FP32 of shape ({len(inputs)}, ...) was expected; is it another model?")
    try:
        found = np.frombuffer(values, "<f4") if isinstance(values, bytes) else np.asarray(values, np.float32)
        return found.astype(np.float32).reshape(tuple(shape))
    except (TypeError, ValueError, OverflowError) as error:
        raise broken(address, f"its answer is no array of shape {tuple(shape)}: {error}") from None
