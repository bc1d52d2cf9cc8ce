"""The graph of a structure without the seconds that an export takes: the whole network's graph, cut as the network is.

    a block        what read its output reads its input; where its branch adds nothing, the other side of the sum
    a channel      the weights that were exported are cut as the network's own are
    the rest       what nobody reads any more goes; sizes of values are inferred anew

A graph is believed only if it answers as the cut network does. What cannot be had so is to be exported: heads, say,
whose number is a constant of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from torch import nn
from torch.export import ExportedProgram

from stages import graph
from stages.base import Surgery
from stages.graph import Floats
from stages.structure.surgery import CONVOLUTIONS, operate
from targets.errors import StageError

__all__ = ["Derived"]

_ALIKE = 1e-4  # of the largest answer, between torch and onnxruntime
_BIAS = "_bias"  # what the exporter adds to a weight's name when it folds a batch norm into a layer without a bias


@dataclass(frozen=True)
class Derived:
    """A whole network, from whose graph others follow.

    Attributes:
        module: in eval mode, with the weights that were exported.
        model: its graph.
        shadow: the same module with the weights of the graph, where batch norms are folded.
        places: by initializer, the tensor in `shadow` that it is, and whether it lies transposed.
        ends: by module, the values of the graph that enter and leave it.
    """

    module: nn.Module
    model: ModelProto
    shadow: nn.Module
    places: Mapping[str, tuple[str, bool]]
    ends: Mapping[str, tuple[str, str]]

    @staticmethod
    def of(module: nn.Module, program: ExportedProgram, model: ModelProto) -> Derived:
        """From an export. Values and weights have the program's names there: see `stages.export`."""
        shadow = deepcopy(module)
        own = shadow.state_dict()
        places = {t.name: place for t in model.graph.initializer if (place := _place(t, shadow, own)) is not None}
        return Derived(module, model, shadow, places, dict(_ends(program, model.graph)))

    def cut(self, surgery: Sequence[Surgery], examples: Floats) -> ModelProto | None:
        """The graph with these cuts; None where it has to be exported.

        Args:
            examples: (k, *input shape); it was seen to answer as the cut network on them.
        """
        made = ModelProto()
        made.CopyFrom(self.model)
        try:
            _bypass(made.graph, surgery, self.ends)
            self._shrink(made.graph, operate(deepcopy(self.shadow), surgery))
            del made.graph.value_info[:]
            made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
            given = graph.predict(graph.session(made), examples)
            with torch.no_grad():
                wanted = operate(deepcopy(self.module), surgery)(torch.from_numpy(examples)).numpy()
        # A network of the user's raises whatever it likes where its shapes no longer fit; an export will tell.
        except (KeyError, ValueError, RuntimeError, StageError, onnx.shape_inference.InferenceError):
            return None
        if given.shape != wanted.shape or not np.isfinite(wanted).all():
            return None
        return made if np.abs(given - wanted).max() <= _ALIKE * np.abs(wanted).max() else None

    def _shrink(self, top: GraphProto, cut: nn.Module) -> None:
        """Gives initializers the values that are left of them, and depthwise convolutions their number of groups."""
        left = cut.state_dict()
        _flatten_any(top)
        for tensor in top.initializer:
            if tensor.name in self.places:
                name, transposed = self.places[tensor.name]
                values = left[name].numpy().T if transposed else left[name].numpy()
                if len(tensor.dims) > values.ndim:  # one number for each channel, laid out to be spread
                    values = values.reshape([-1 if size > 1 else 1 for size in tensor.dims])
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
        for node in top.node:
            owner = self.places.get(node.input[1], ("", False))[0].rpartition(".")[0] if len(node.input) > 1 else ""
            layer = cut.get_submodule(owner) if owner else None
            if isinstance(layer, CONVOLUTIONS):
                for attribute in node.attribute:
                    if attribute.name == "group":
                        attribute.i = layer.groups


def _place(tensor: TensorProto, shadow: nn.Module, own: Mapping[str, torch.Tensor]) -> tuple[str, bool] | None:
    """Where an initializer belongs in the network, whose tensors are `own` and which takes its values."""
    if tensor.data_type != TensorProto.FLOAT:
        return None
    name = tensor.name
    values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    if name in own and own[name].shape == values.shape:
        own[name].copy_(values)
        return name, False
    weight = name.removesuffix(_BIAS)
    if name != weight and weight in own:
        owner, _, _ = weight.rpartition(".")
        shadow.get_submodule(owner).bias = nn.Parameter(values, requires_grad=False)
        return f"{owner}.bias", False
    alike = ((n, t) for n, t in own.items() if t.ndim and t.numel() == values.numel() > 1)
    for n, t in alike:
        if t.ndim == 2 and torch.equal(t.T, values):
            return n, True
        if t.ndim == 1 and values.shape.count(1) == values.ndim - 1 and torch.equal(t, values.flatten()):
            return n, False
    return None


def _ends(program: ExportedProgram, top: GraphProto) -> Iterator[tuple[str, tuple[str, str]]]:
    """By each module that one value enters and one leaves: the two."""
    names = dict.fromkeys(program.graph_signature.user_inputs, top.input[0].name)
    weights = {node.name for node in program.graph.nodes if node.op == "placeholder"} - {*names}
    written = {name for node in top.node for name in node.output}
    inner: dict[str, set[Any]] = {}
    for node in program.graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            inner.setdefault(path, set()).add(node)
    for path, nodes in inner.items():
        others = {other for node in nodes for other in node.all_input_nodes if other not in nodes}
        enter = {node.name for node in others if _is_tensor(node)} - weights
        leave = {node for node in nodes if _is_tensor(node) and any(user not in nodes for user in node.users)}
        if len(enter) == len(leave) == 1:
            came, went = enter.pop(), leave.pop()
            while (
                went.name not in written and len(went.users) == 1
            ):  # a layer that the batch norm behind it was folded into
                went = next(iter(went.users))
            yield path, (names.get(came, came), went.name)


def _is_tensor(node: Any) -> bool:
    """Not a size, say."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def _flatten_any(top: GraphProto) -> None:
    """Where each example becomes one row, (-1, n), in place: its length need not be said."""
    sizes = {t.name: t for t in top.initializer if t.data_type == TensorProto.INT64 and list(t.dims) == [2]}
    first = {v.name: v.type.tensor_type.shape.dim[:1] for v in (*top.input, *top.value_info, *top.output)}
    batch = first[top.input[0].name]
    for node in top.node:
        tensor = sizes.get(node.input[1]) if node.op_type == "Reshape" else None
        ends = (node.input[0], node.output[0])
        # Windows or heads may be folded into the first axis: (-1, n) is another matter then.
        if tensor is not None and numpy_helper.to_array(tensor)[0] == -1 and all(first.get(v) == batch for v in ends):
            del node.attribute[:]  # allowzero: a 0 would be a length
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, -1], np.int64), tensor.name))


def _bypass(top: GraphProto, surgery: Sequence[Surgery], ends: Mapping[str, tuple[str, str]]) -> None:
    """Takes blocks out of a graph, in place, and all that worked for them alone.

    Raises:
        KeyError: it is not known what enters and leaves a block.
        ValueError: nobody reads a block, or what gives zeros is not read by sums alone.
    """
    instead: dict[str, str] = {}
    for cut in (cut for cut in surgery if cut.kind in ("identity", "zero")):
        enter, leave = ends[cut.module]
        readers = [node for node in top.node if leave in node.input]
        if not readers:
            raise ValueError
        if cut.kind == "identity":
            instead[leave] = enter
            continue
        for node in readers:
            others = [name for name in node.input if name != leave]
            if node.op_type != "Add" or len(others) != 1:
                raise ValueError
            instead[node.output[0]] = others[0]
    for node in top.node:
        for place, name in enumerate(node.input):
            while name in instead:
                name = instead[name]
            node.input[place] = name
    _sweep(top)


def _sweep(top: GraphProto) -> None:
    """Removes what nobody reads, in place."""
    read = {value.name for value in top.output}
    kept: list[NodeProto] = []
    for node in reversed(top.node):
        if not read.isdisjoint(node.output):
            kept.append(node)
            read.update(node.input)
    weights = [tensor for tensor in top.initializer if tensor.name in read]
    for field, values in ((top.node, kept[::-1]), (top.initializer, weights)):
        del field[:]
        field.extend(values)
