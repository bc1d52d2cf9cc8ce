"""A model brought down to what a server's version takes, proven to answer the same.

`fitted` leaves a model that fits alone, converts one that does not by onnx's own converter, and refuses where the
converted one is not the same function.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from targets.artifact import Artifact, load
from targets.errors import InputError
from targets.servers.agreement import ulps
from targets.servers.common import pretty, refuse
from targets.servers.disk import read
from targets.servers.shipment import Shipment
from targets.servers.versions import Ceiling, ceiling

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto

__all__ = ["CONVERSION", "fitted", "told"]

CONVERSION = "conversion.json"
"""The paper that says what was done to the model."""

_STEPS = {"opset": "opset", "ir_version": "IR version"}
_EXPORTED = 18  # the lowest opset that a recipe's export writes


def fitted(shipment: Shipment, server: str, server_version: str) -> Shipment:
    """The shipment with a model that the server's version takes: the same one, or converted down.

    The converted model answers the golden sample as the original does, by onnxruntime on the CPU: bit by bit, or within
    one unit in the last place of float32. What was done goes into the papers as conversion.json.

    Raises:
        InputError: the version is not known; or no model that answers the same could be made for it.
    """
    most = ceiling(server, server_version)
    model = shipment.model
    if most is None or most.takes(model.opset, model.ir_version):
        return shipment
    if not len(shipment.sample):
        raise _unfit(shipment, most, "there is no golden sample to prove a converted one on")
    if len(model.inputs) != 1:
        raise _unfit(shipment, most, f"it has {len(model.inputs)} inputs, and the golden sample is of one")
    lower, within = _lowered(shipment, most)
    proof = {"examples": len(shipment.sample), "bit_equal": within == 0, "onnxruntime": version("onnxruntime")}
    paper = {
        "version": 1,
        "because": f"{most}; this model has opset {model.opset} and IR version {model.ir_version}",
        "source": most.source,
        "by": f"onnx.version_converter, onnx {version('onnx')}",
        "from": _facts(model),
        "to": _facts(lower),
        "proof": proof | {"within_ulp": within},
    }
    return dataclasses.replace(shipment, model=lower, papers={**shipment.papers, CONVERSION: pretty(paper)})


def told(before: Shipment, after: Shipment) -> str:
    """What `fitted` did to the model, in words; empty where it left it alone."""
    if after.model.sha256 == before.model.sha256:
        return ""
    paper = json.loads(after.papers[CONVERSION])
    (was, is_now), proof = (paper["from"], paper["to"]), paper["proof"]
    steps = [f"{key} {was[at]} to {is_now[at]}" for at, key in _STEPS.items() if was[at] != is_now[at]]
    equal = "bit-equal" if proof["bit_equal"] else f"equal within {proof['within_ulp']} unit in the last place"
    most = paper["because"].partition(";")[0]
    examples = f"{proof['examples']} example{'s' * (proof['examples'] != 1)}"
    return f"converted from {' and '.join(steps)}, proven {equal} on the golden sample ({examples}): {most}"


def _facts(model: Artifact) -> dict[str, Any]:
    return {"sha256": model.sha256, "opset": model.opset, "ir_version": model.ir_version}


def _unfit(shipment: Shipment, most: Ceiling, why: str) -> InputError:
    model, opset = shipment.model, _reached(most)
    newer = "name a newer server with --server-version"
    again = f"export it lower: `export: {{opset: {opset}}}` in the recipe, then `attar run`; or {newer}"
    return refuse(
        model,
        f"has opset {model.opset} and IR version {model.ir_version}; {most} ({most.source}); {why}",
        again if opset >= _EXPORTED else newer,
    )


def _lowered(shipment: Shipment, most: Ceiling) -> tuple[Artifact, int]:
    """The model within a ceiling, and how far its answers are apart: 0 or 1 units in the last place."""
    import onnx
    from onnx import checker, shape_inference, version_converter

    data = read(shipment.model.path) or b""
    if hashlib.sha256(data).hexdigest() != shipment.model.sha256:
        raise refuse(shipment.model, "was changed while it was being shipped", "ship it again when that is done")
    original = onnx.load_model_from_string(data)
    try:
        then = _answers(shipment.model.path, shipment.model, shipment.sample)
        lower = _converted(original, most)
        path = _place() / f"{shipment.model.sha256}-{_reached(most)}-{lower.ir_version}.onnx"
        path.write_bytes(lower.SerializeToString())
        made = load(path)
        now = _answers(path, made, shipment.sample)
    except (
        *(InputError, RuntimeError, ValueError, checker.ValidationError),
        *(version_converter.ConvertError, shape_inference.InferenceError),  # plain exceptions both
    ) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix(f"{_place()}/")
        raise _unfit(shipment, most, f"converting it down failed: {first}") from None
    apart = [_apart(a, b) for a, b in zip(then, now, strict=True)]
    if not all(0 <= each <= 1 for each in apart):
        most_of = f", by up to {max(apart)} units in the last place" if min(apart) >= 0 else ""
        raise _unfit(shipment, most, f"the converted model answers the golden sample otherwise{most_of}")
    return made, max(apart)


def _converted(model: ModelProto, most: Ceiling) -> ModelProto:
    """The model in an opset and an IR version within the ceiling.

    Raises:
        RuntimeError: an operator has no older form.
    """
    from onnx import checker, version_converter

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    wanted = min(opset, _reached(most))
    _forget_defaults(model, opset, wanted)
    lower = version_converter.convert_version(model, wanted) if wanted < opset else model
    if most.ir_version is not None:
        lower.ir_version = min(lower.ir_version, most.ir_version)
    checker.check_model(lower, full_check=True)
    return lower


def _forget_defaults(model: ModelProto, opset: int, wanted: int) -> None:
    """Takes away attributes that the older form of a node's operator lacks, where they say what is so without them.

    The converter leaves them, and the checker refuses them: noop_with_empty_axes of ReduceMean, which came with 18.
    """
    from onnx import defs

    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            now, then = (defs.get_schema(node.op_type, number).attributes for number in (opset, wanted))
        except defs.SchemaError:  # the converter will say it
            continue
        kept = [a for a in node.attribute if a.name in then or a.name not in now or _differs(a, now[a.name])]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def _differs(attribute: AttributeProto, known: Any) -> bool:
    """Whether an attribute says something else than its default."""
    from onnx import helper

    default = known.default_value
    return not default.name or helper.get_attribute_value(attribute) != helper.get_attribute_value(default)


def _reached(most: Ceiling) -> int:
    """The highest opset whose own IR version is within the ceiling too: 19 came with IR version 9, 18 with 8."""
    from onnx import helper

    for opset in range(most.opset, 6, -1):
        if (
            most.ir_version is None
            or helper.find_min_ir_version_for([helper.make_opsetid("", opset)]) <= most.ir_version
        ):
            return opset
    return most.opset


def _answers(path: Path, model: Artifact, sample: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Every output for the sample, by onnxruntime on the CPU; a fixed batch is fed with examples over and over."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        batch = model.inputs[0].shape[0]
        size = batch if isinstance(batch, int) else min(64, len(sample))
        parts = []
        for start in range(0, len(sample), size):
            rows = np.arange(start, start + size) % len(sample)
            parts.append(session.run(None, {model.inputs[0].name: sample[rows]}))
    except Exception as error:  # onnxruntime's own errors share no public parent
        raise RuntimeError(f"onnxruntime refuses it: {error}") from None
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _apart(a: NDArray[Any], b: NDArray[Any]) -> int:
    """How far two outputs are apart, in units in the last place of float32; -1 where that is not to be said."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return -1
    if a.dtype == np.float32:
        return ulps(a, b)
    return 0 if a.tobytes() == b.tobytes() else -1


@cache
def _place() -> Path:
    """A folder for converted models, until this process ends."""
    return Path(_keeper().name)


@cache
def _keeper() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="attar-ship-")
