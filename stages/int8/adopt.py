"""Puts the weights of a folded ONNX graph back into the torch network that the graph came from.

Weights behind which a batch norm was folded are divided by its gain, and biases go into the batch norm's shift.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.fx import Node

from stages.int8.fake import AXES, Parts, along
from stages.int8.placement import Layer

__all__ = ["put_back", "same_nodes"]

_NO_GAIN = 1e-12  # a batch norm that lets nothing through: it gets a gain of one


def same_nodes(one: ModelProto, other: ModelProto) -> bool:
    """Whether two graphs differ in nothing but the numbers of their constants."""

    def bones(model: ModelProto) -> Any:
        nodes = [(n.name, n.op_type, list(n.input), list(n.output), list(n.attribute)) for n in model.graph.node]
        return nodes, sorted((t.name, t.data_type, *t.dims) for t in model.graph.initializer)

    return bool(bones(one) == bones(other))


@torch.no_grad()
def put_back(network: nn.Module, parts: Parts, layer: Layer, weight: Tensor, bias: Tensor) -> None:
    """Makes one layer of the network, with the batch norm behind it, compute with these weights.

    What the network has no place for is left out: whether that matters, its answers tell.

    Args:
        weight: as torch has them.
        bias: (out,), or empty.
    """
    tensors = network.state_dict(keep_vars=True)

    def own(node: Node, i: int) -> Tensor | None:
        """The network's tensor that is an operator's i-th argument."""
        argument = node.args[i] if i < len(node.args) else None
        return tensors.get(parts.tensors.get(argument.name, "")) if isinstance(argument, Node) else None

    made, conv = parts.node(layer.made), parts.weighted(layer)
    own_weight, own_bias = own(conv, 1), own(conv, 2)
    if own_weight is None:
        return
    if made is conv:
        own_weight.copy_(weight)
        if own_bias is not None:
            own_bias.copy_(bias)
        return
    gamma, beta, mean, var = (own(made, i) for i in (1, 2, 3, 4))
    assert mean is not None
    assert var is not None
    spread = torch.sqrt(var + made.args[7])  # type: ignore[operator, arg-type]
    if gamma is not None:
        gamma.copy_(torch.where((gamma / spread).abs() < _NO_GAIN, spread, gamma))
    gain = (1 if gamma is None else gamma) / spread
    own_weight.copy_(weight / gain.view(along(own_weight, AXES[conv.target])))  # type: ignore[index]
    if beta is not None:
        beta.copy_(bias + (mean if own_bias is None else mean - own_bias) * gain)
    elif own_bias is not None:
        own_bias.copy_(bias / gain + mean)
