"""The Open Inference Protocol over gRPC by `tritonclient`, which speaks it to any server that does.

https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.errors import AttarError, InputError
from targets.servers.protocol import Address, Metadata, Tensor, answer, broken, the_input, unknown

__all__ = ["GrpcEndpoint"]


class GrpcEndpoint:
    """See `targets.servers.protocol.Endpoint`."""

    how = "gRPC"

    def __init__(self, address: Address, timeout_s: float) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or gRPC itself writes on standard error, too
        try:
            import tritonclient.grpc as grpc
        except ImportError as error:
            what = f"{address}: gRPC needs tritonclient, which is not installed ({error.name})"
            raise InputError(what, help="pip install 'attar[serve]', or give the server's HTTP address") from None
        self._grpc, self._address, self._timeout_s = grpc, address, timeout_s
        self._client = grpc.InferenceServerClient(address.place)
        self._metadata: Metadata | None = None

    @property
    def url(self) -> str:
        """Its address, whole."""
        return str(self._address)

    def ready(self) -> bool:
        """Whether the model takes requests."""
        try:
            return bool(self._call(self._client.is_model_ready, self._address.model, self._address.version))
        except _RefusedError:
            return False

    def metadata(self) -> Metadata:
        """What the model takes and gives."""
        if self._metadata is None:
            try:
                server = self._call(self._client.get_server_metadata)
                found = self._call(self._client.get_model_metadata, self._address.model, self._address.version)
            except _RefusedError as error:
                raise unknown(self._address, str(error), self._models()) from None
            self._metadata = Metadata(
                found.name,
                tuple(found.versions),
                _tensors(found.inputs),
                _tensors(found.outputs),
                f"{server.name} {server.version}".strip(),
            )
        return self._metadata

    def infer(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(k, *input shape) -> (k, ...), in one request."""
        metadata = self.metadata()
        tensor = self._grpc.InferInput(the_input(self._address, metadata).name, list(inputs.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(inputs, np.float32))
        name = metadata.outputs[0].name
        wanted = [self._grpc.InferRequestedOutput(name)]
        try:
            found = self._call(
                self._client.infer, self._address.model, [tensor], self._address.version, wanted, request_id="1"
            )
        except _RefusedError as error:
            raise broken(self._address, f"refused inputs of shape {inputs.shape}: {error}") from None
        try:
            output, values = found.get_output(name), found.as_numpy(name)
        except (self._grpc.InferenceServerException, ValueError, TypeError, IndexError, struct.error) as error:
            raise broken(self._address, f"its answer is not in the protocol's form: {error!r}") from None
        if output is None or values is None:
            raise broken(self._address, f"its answer holds no output {name!r}")
        return answer(self._address, inputs, output.datatype, values.shape, values)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _models(self) -> list[str]:
        try:
            return [model.name for model in self._call(self._client.get_model_repository_index).models]
        except AttarError:  # it has no such call
            return []

    def _call(self, ask: Callable[..., Any], *words: Any, **more: Any) -> Any:
        try:
            return ask(*words, client_timeout=self._timeout_s, **more)
        except self._grpc.InferenceServerException as error:
            status, said = str(error.status()).removeprefix("StatusCode."), " ".join(str(error.message()).split())
        if status == "UNAVAILABLE":
            what = f"no gRPC server answers on {self._address.place}: {said}"
            raise broken(self._address, what, "start the server, or give its gRPC port; http:// for the other one")
        if status in ("DEADLINE_EXCEEDED", "CANCELLED"):
            raise broken(self._address, f"{self._address.place} did not answer within {self._timeout_s:g} s")
        raise _RefusedError(f"{said[:300]} ({status})")


def _tensors(many: Any) -> tuple[Tensor, ...]:
    return tuple(Tensor(each.name, each.datatype, tuple(each.shape)) for each in many)


class _RefusedError(AttarError):
    """The server answered with an error; its own words."""
