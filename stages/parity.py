"""Is an ONNX file the same function as the torch network that it came from? Shown on real inputs, by a real onnxruntime
session; where not, the first node that differs is found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stages import graph
from stages.base import Signature
from stages.graph import Floats
from targets.errors import StageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Divergence", "first_divergence", "prove"]


@dataclass(frozen=True)
class Divergence:
    """The first place, in order of computation, where two runs differ.

    Attributes:
        node, op, value: the ONNX node, its operator, and the value that it makes.
        index: where in the value the difference is largest.
        torch, onnx: the two numbers there.
        note: what else is wrong ("shapes (2, 4) and (2, 5)"), or empty.
    """

    node: str
    op: str
    value: str
    index: tuple[int, ...]
    torch: float
    onnx: float
    note: str = ""

    def __str__(self) -> str:
        numbers = f"torch gives {self.torch:.6g} and ONNX {self.onnx:.6g} at {list(self.index)}"
        return f"node {self.node!r} ({self.op}), value {self.value!r}: {self.note or numbers}"


def prove(
    program: ExportedProgram, signature: Signature, path: Path, batches: Iterable[Floats], tolerance: float
) -> float:
    """Compares the file with torch. Batches of one and of several prove the dynamic axis.

    Args:
        batches: real inputs (batch, ...).
        tolerance: largest difference allowed, as a share of the largest output of all batches.

    Returns:
        the largest absolute difference seen, to three digits.

    Raises:
        StageError: a larger difference; the message names the first node that differs.
    """
    module, runner = program.module(), graph.session(path)
    largest, worst = 0.0, -1.0
    for inputs in batches:
        with torch.inference_mode():
            expected = np.asarray(module(torch.from_numpy(inputs)), np.float32)
        if not np.isfinite(expected).all():
            raise StageError("torch itself gives NaN or infinite outputs on validation examples: nothing to compare")
        got = graph.predict(runner, inputs)
        if got.shape != expected.shape:
            raise StageError(f"the exported file gives shape {got.shape} where torch gives {expected.shape}")
        largest = max(largest, float(np.abs(expected).max()))
        off = float(np.abs(got - expected).max())
        off = off if np.isfinite(off) else np.inf
        if off > worst:
            worst, hardest = off, inputs
    if worst > tolerance * largest:
        found = first_divergence(program, signature, graph.read(path), hardest, tolerance)
        where = f"first at {found}" if found else "no single node differs by as much: small differences add up"
        raise StageError(
            f"the exported file differs from torch by {worst:.3g}; allowed is {tolerance:g} of the largest output "
            f"{largest:.3g}; {where}"
        )
    return float(f"{worst:.3g}")


def first_divergence(
    program: ExportedProgram, signature: Signature, model: Any, inputs: Floats, tolerance: float
) -> Divergence | None:
    """Runs both, keeps every value, and walks along the ONNX graph. Values are matched by name (see `stages.export`).

    Args:
        inputs: (batch, ...).
        tolerance: as a share of each value's own largest number.
    """
    expected = _torch_values(program, inputs)
    outputs = [str(spec.arg.name) for spec in program.graph_signature.output_specs]
    names = {signature.output_name: outputs[0]}
    seen, order = graph.watched(model)
    session = graph.session(seen)
    got = dict(zip(order, session.run(order, {signature.input_name: inputs}), strict=True))
    makers = {name: node for node in model.graph.node for name in node.output}
    for value in order:
        reference = expected.get(names.get(value, value))
        if reference is None:
            continue
        node, actual = makers[value], got[value]
        if reference.shape != actual.shape:
            note = f"torch gives shape {reference.shape} and ONNX {actual.shape}"
            return Divergence(node.name, node.op_type, value, (), float("nan"), float("nan"), note)
        off = np.abs(actual - reference)
        off[np.isnan(off)] = np.inf
        if off.size and not off.max() <= tolerance * np.abs(reference).max():
            index = np.unravel_index(int(off.argmax()), off.shape)
            at = tuple(int(i) for i in index)
            return Divergence(node.name, node.op_type, value, at, float(reference[index]), float(actual[index]))
    return None


def _torch_values(program: ExportedProgram, inputs: Floats) -> dict[str, Floats]:
    """Every float tensor of a forward pass, by the name of its fx node."""
    values: dict[str, Floats] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            made = super().run_node(n)
            if n.op == "call_function" and isinstance(made, torch.Tensor) and made.is_floating_point():
                values[n.name] = made.detach().numpy().copy()  # later nodes may write into it
            return made

    with torch.inference_mode():
        Keep(program.module()).run(torch.from_numpy(inputs))
    return values
