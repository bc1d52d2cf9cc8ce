"""Serves an ONNX file in MLServer, by onnxruntime. Lies beside the model and its model-settings.json.

Needs in MLServer's environment:  pip install mlserver onnxruntime
How it is asked to run stands in model-settings.json, under parameters.extra: provider, options, fallback, threads.
MLServer's contract: https://mlserver.readthedocs.io/en/stable/user-guide/custom.html
"""

# mypy: ignore-errors
# (MLServer lives in an environment of its own.)
from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import Datatype, InferenceRequest, InferenceResponse, RequestInput
from mlserver.utils import get_model_uri

__all__ = ["OnnxModel"]


class OnnxModel(MLModel):
    """One version of a model, in this process."""

    async def load(self) -> bool:
        """Opens the model with the provider and threads that it was measured with.

        Raises:
            RuntimeError: the provider is not in this onnxruntime, or refuses the model. It would fall back to the CPU
                without a word.
        """
        parameters = self.settings.parameters
        extra: dict[str, Any] = dict(parameters.extra or {}) if parameters else {}
        provider = extra.get("provider", "CPUExecutionProvider")
        here = onnxruntime.get_available_providers()
        if provider not in here:
            raise RuntimeError(
                f"{provider} is not in this onnxruntime {onnxruntime.__version__}, which has {', '.join(here)}: "
                "install the build of onnxruntime that has it"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(extra.get("threads", 1))
        options.inter_op_num_threads = 1
        providers = [(provider, dict(extra.get("options", {}))), *extra.get("fallback", ())]
        if provider != "CPUExecutionProvider":
            providers.append("CPUExecutionProvider")
        path = await get_model_uri(self.settings, wellknown_filenames=["model.onnx"])
        # enable_fallback=0: an error of the provider is raised, where onnxruntime would try again without it.
        self._session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
        if (first := self._session.get_providers()[0]) != provider:
            raise RuntimeError(f"{provider} refused the model, and onnxruntime fell back to {first}")
        self._shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._types = {value.name: Datatype(value.datatype) for value in self.settings.inputs}
        self._outputs = [value.name for value in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers one request.

        Raises:
            InferenceError: inputs or outputs that the model does not have, or of another type or shape (HTTP 400).
        """
        given = {value.name: value for value in payload.inputs}
        if sorted(given) != sorted(self._shapes) or len(given) != len(payload.inputs):
            got = ", ".join(value.name for value in payload.inputs) or "none"
            raise InferenceError(f"the model takes the inputs {', '.join(self._shapes)}; got {got}")
        wanted = [value.name for value in payload.outputs or ()] or self._outputs
        if unknown := set(wanted) - set(self._outputs):
            raise InferenceError(f"the model gives {', '.join(self._outputs)}, and not {', '.join(sorted(unknown))}")
        feeds = {name: self._array(value) for name, value in given.items()}
        found = self._session.run(wanted, feeds)
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(name, value) for name, value in zip(wanted, found)],  # noqa: B905
        )

    def _array(self, value: RequestInput) -> np.ndarray[Any, Any]:
        """The input as an array, once its type and shape are the model's."""
        name, got = value.name, list(value.shape)
        if Datatype(value.datatype) != self._types[name]:
            raise InferenceError(
                f"input {name!r} must be {self._types[name].value}; got {Datatype(value.datatype).value}"
            )
        shape = self._shapes[name]
        fits = len(got) == len(shape) and all(
            a == b or (not isinstance(b, int) and a > 0)
            for a, b in zip(got, shape)  # noqa: B905
        )
        if not fits:
            raise InferenceError(f"input {name!r} must have the shape {_shown(shape)}; got {_shown(got)}")
        try:
            return np.ascontiguousarray(NumpyCodec.decode_input(value))
        except (ValueError, TypeError) as error:
            raise InferenceError(f"input {name!r} does not hold what its shape {_shown(got)} says: {error}") from None


def _shown(shape: list[Any]) -> str:
    return "(" + ", ".join(str(size) if size is not None else "?" for size in shape) + ")"
