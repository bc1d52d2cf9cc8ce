"""Two classifiers in one ONNX graph: the small one runs, the large one only where the small one is not sure.

    x ── small ── logits ── margin ──┬── If(smallest margin < threshold) ── logits
    └────────────────────────────────┘       then: Where(margin < threshold, large(x), small's logits)
                                             else: small's logits

The margin is the largest logit minus the second. Unlike the largest probability it takes no exponential, and does not
saturate: float32 has no numbers between 1 - 6e-8 and 1, where the sure examples of a network crowd.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, inliner, numpy_helper

from stages import graph
from targets.errors import StageError

__all__ = ["LOWEST_OPSET", "join", "margins"]

LOWEST_OPSET = 13  # below, ReduceMin, Split and Less are other operators
_RULE = "cascade/"


def margins(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest logit minus the second, (batch, classes) -> (batch,), as the graph computes it."""
    ordered = np.sort(np.asarray(logits, np.float32), axis=1)
    return ordered[:, -1] - ordered[:, -2]


def join(small: ModelProto, large: ModelProto, threshold: float) -> ModelProto:
    """One graph with the large one's input and output. Neither argument is changed.

    All names of the two get a prefix, "small/" or "large/". The weights of the large one lie in its branch.

    Raises:
        StageError: the two use different versions of an operator set, or one too old for the rule between them.
    """
    small, large = _prefixed(small, "small/", large.graph.input[0].name), _prefixed(large, "large/")
    opsets = _opsets((small, large))
    given, (quick,), (sound,) = large.graph.input[0], small.graph.output, large.graph.output
    margin, unsure, answer = f"{_RULE}margin", f"{_RULE}unsure", sound.name.removeprefix("large/")

    limit = numpy_helper.from_array(np.array(threshold, np.float32), f"{_RULE}threshold")
    two = numpy_helper.from_array(np.array([2], np.int64), f"{_RULE}two")
    rule = [
        _node("TopK", [quick.name, two.name], [f"{_RULE}two_largest", f"{_RULE}classes"], axis=1),
        _node("Split", [f"{_RULE}two_largest"], [f"{_RULE}first", f"{_RULE}second"], axis=1, **_halves(opsets[""])),
        _node("Sub", [f"{_RULE}first", f"{_RULE}second"], [margin]),
        _node("ReduceMin", [margin], [f"{_RULE}smallest_margin"], keepdims=0),
        _node("Less", [f"{_RULE}smallest_margin", limit.name], [unsure]),
    ]
    then = GraphProto()
    then.CopyFrom(large.graph)
    del then.input[:], then.output[:]
    then.name = "large"
    then.node.extend(
        (
            _node("Less", [margin, limit.name], [f"{_RULE}asks"]),
            _node("Where", [f"{_RULE}asks", sound.name, quick.name], [f"{_RULE}both"]),
        )
    )
    then.output.append(_like(sound, f"{_RULE}both"))
    kept = helper.make_graph(
        [_node("Identity", [quick.name], [f"{_RULE}kept"])], "small", [], [_like(sound, f"{_RULE}kept")]
    )
    choice = _node("If", [unsure], [answer], then_branch=then, else_branch=kept)

    whole = GraphProto()
    whole.CopyFrom(small.graph)
    del whole.input[:], whole.output[:]
    whole.name = "cascade"
    whole.input.append(given)
    whole.output.append(_like(sound, answer))
    whole.initializer.extend((two, limit))
    whole.node.extend((*rule, choice))
    imports = [helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())]
    made = helper.make_model(whole, opset_imports=imports)
    made.ir_version = max(small.ir_version, large.ir_version)
    graph.strip(made)
    return made


def _node(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes)


def _halves(opset: int) -> dict[str, int]:
    return {"num_outputs": 2} if opset >= 18 else {}  # before, equal parts were what came without being said


def _like(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def _opsets(models: Iterable[ModelProto]) -> dict[str, int]:
    found: dict[str, int] = {}
    for model in models:
        for one in model.opset_import:
            domain = "" if one.domain == "ai.onnx" else one.domain
            known = found.setdefault(domain, one.version)
            if known != one.version:
                raise StageError(
                    f"the small network uses version {known} of the operators {domain or 'of ONNX'} and the large one "
                    f"{one.version}; one graph has one: export both with the same opset"
                )
    if found.get("", 0) < LOWEST_OPSET:
        raise StageError(f"a cascade takes opset {LOWEST_OPSET} or above, and the networks have {found.get('', 0)}")
    return found


def _prefixed(model: ModelProto, prefix: str, given: str = "") -> ModelProto:
    """A copy in which every name, of any scope, starts with `prefix`; but the input, which is called `given`."""
    copy = inliner.inline_local_functions(model) if model.functions else model
    made = ModelProto()
    made.CopyFrom(copy)
    (entry,) = [value.name for value in made.graph.input if value.name not in _constants(made.graph)]
    for inner in graph.graphs(made.graph):
        _rename(inner, prefix, {"": "", entry: given or entry})
    inputs = [value for value in made.graph.input if value.name == (given or entry)]
    del made.graph.input[:]
    made.graph.input.extend(inputs)  # old files list weights among their inputs too
    return made


def _constants(inner: GraphProto) -> set[str]:
    return {tensor.name for tensor in inner.initializer}


def _rename(inner: GraphProto, prefix: str, kept: dict[str, str]) -> None:
    def new(name: str) -> str:
        return kept[name] if name in kept else prefix + name

    for node in inner.node:
        node.name = prefix + (node.name or f"{node.op_type} of {next(filter(None, node.output), '')}")
        node.input[:] = map(new, node.input)
        node.output[:] = map(new, node.output)
    for part in (*inner.input, *inner.output, *inner.value_info, *inner.initializer):
        part.name = new(part.name)
    for sparse in inner.sparse_initializer:
        sparse.values.name = new(sparse.values.name)
    for note in inner.quantization_annotation:
        note.tensor_name = new(note.tensor_name)
