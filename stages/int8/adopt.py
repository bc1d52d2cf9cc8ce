"""Puts the weights of a folded ONNX graph back into the torch network that the graph came from.

Equalization and bias correction change the graph. Training begins from there only if the torch twin can hold the same:
weights behind which a batch norm was folded are divided by its gain, shifts of biases go into the batch norm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn
from torch.fx import Node

from stages import graph
from stages.graph import Floats
from stages.int8.fake import AXES, Parts, along, gain_of
from stages.int8.placement import Layer, layers_of

__all__ = ["adopt", "same_nodes"]

_CLOSE = 1e-3  # of the largest logit: sums in another order


@torch.no_grad()
def adopt(network: nn.Module, parts: Parts, before: ModelProto, after: ModelProto, inputs: Floats) -> bool:
    """Turns `network`, which computes `before`, into one that computes `after`, in place.

    Args:
        inputs: real ones (batch, ...), to see whether it worked.

    Returns:
        whether it did; if not, the network is spoiled.
    """
    if not same_nodes(before, after):
        return False
    old, new = _constants(before), _constants(after)
    changed = {name for name in new if not np.array_equal(new[name], old[name])}
    if not changed:
        return True
    tensors = dict(network.state_dict(keep_vars=True))
    for layer in layers_of(after):
        if not changed.isdisjoint((layer.weight, layer.bias)):
            _put(tensors, parts, layer, new)
    expected = graph.predict(graph.session(after), inputs)
    got = network(torch.from_numpy(inputs)).numpy()
    return bool(np.abs(got - expected).max() <= _CLOSE * np.abs(expected).max())


def same_nodes(one: ModelProto, other: ModelProto) -> bool:
    """Whether two graphs differ in nothing but the numbers of their constants."""

    def bones(model: ModelProto) -> Any:
        nodes = [(n.name, n.op_type, list(n.input), list(n.output), list(n.attribute)) for n in model.graph.node]
        return nodes, sorted((t.name, t.data_type, *t.dims) for t in model.graph.initializer)

    return bool(bones(one) == bones(other))


def _constants(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _put(tensors: dict[str, Tensor], parts: Parts, layer: Layer, constants: dict[str, NDArray[Any]]) -> None:
    """Writes what the twin has a place for; whether that was all, the answers tell."""
    made, conv = parts.node(layer.made), parts.weighted(layer)

    def own(node: Node, i: int) -> Tensor | None:
        """The twin's tensor that is an operator's i-th argument."""
        name = node.args[i].name if i < len(node.args) and isinstance(node.args[i], Node) else None  # type: ignore[union-attr]
        return tensors.get(parts.tensors.get(name or "", ""))

    weight, bias = own(conv, 1), own(conv, 2)
    if weight is None:
        return
    wanted = torch.from_numpy(np.array(constants[layer.weight].T if layer.transposed else constants[layer.weight]))
    shift = torch.from_numpy(np.array(constants[layer.bias])) if layer.bias else torch.zeros(())
    if made is conv:
        weight.copy_(wanted)
        if bias is not None:
            bias.copy_(shift)
        return
    gamma, beta, mean, var = (own(made, i) for i in (1, 2, 3, 4))
    assert mean is not None
    assert var is not None
    gain = gain_of(gamma, var, made.args[7])
    wide = gain.view(along(weight, AXES[conv.target]))  # type: ignore[index]
    weight.copy_(torch.where(wide == 0, weight, wanted / wide))
    before = mean if bias is None else mean - bias
    if beta is not None:
        beta.copy_(shift + before * gain)
    elif bias is not None:
        bias.copy_(shift / gain + mean)
