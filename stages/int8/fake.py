"""A torch network that rounds where an int8 graph rounds, and can be trained so.

The forward pass is captured once, in eval mode, so that batch norms keep the statistics that they have. What is trained
are the weights of the graph, with batch norms folded into them: so equalized weights stay equal in size, and what is
trained is what will run (Nagel et al. 2021, arXiv:2106.08295, section 4.2: static folding).

    weights      symmetric, by their own largest number; the gradient passes straight through (Bengio et al. 2013,
                 arXiv:1308.3432)
    activations  on the grids of the graph, which stay; the gradient passes where a number lies inside its range.
                 Learned steps (LSQ: Esser et al., ICLR 2020, arXiv:1902.08153) were tried: at eight bits they end no
                 better than calibrated ones
    biases       rounded to step of input times step of weights, as int32 will be
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import getitem
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from stages.base import Signature
from stages.int8.placement import Grid, Layer, Placement
from targets.errors import StageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["AXES", "FakeQuantized", "Parts", "along"]

_ATEN = torch.ops.aten
_NORM = _ATEN.batch_norm.default
# operator -> axis of the output channels in its weights
AXES = {
    _ATEN.conv1d.default: 0,
    _ATEN.conv2d.default: 0,
    _ATEN.conv3d.default: 0,
    _ATEN.conv1d.padding: 0,
    _ATEN.conv2d.padding: 0,
    _ATEN.conv3d.padding: 0,
    _ATEN.conv_transpose1d.default: 1,
    _ATEN.conv_transpose2d.input: 1,
    _ATEN.conv_transpose3d.input: 1,
    _ATEN.linear.default: 0,
}
_TINY = torch.finfo(torch.float32).tiny
_INT32 = 1.0001 / (2**31 - 1)  # the quantizer widens the weights' step until the bias fits


class FakeQuantized(nn.Module):
    """Gives what the int8 graph gives.

    Args:
        network: what its parameters do besides being weights of `layers` (slopes of a PReLU, say) is trained too.
        program: the network, captured by `stages.export.trace`.
        layers: of the float graph that the placement was made from.
        constants: of that graph.
        largest: int8 weight.

    Attributes:
        weights, biases: of the layers, in their order; batch norms are folded into them. Where a layer has no bias, it
            is empty.

    Raises:
        StageError: a value of the graph is not in the program, or weights are used in a way that is not known here.
    """

    def __init__(
        self,
        network: nn.Module,
        program: ExportedProgram,
        signature: Signature,
        layers: Sequence[Layer],
        constants: Mapping[str, NDArray[Any]],
        placement: Placement,
        largest: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self._program = program
        self._run = _Run(self, placement, largest)
        parts = Parts(program, signature)
        for value, grid in placement.values.items():
            self._run.rounded[parts.node(value)] = placement.grids[grid]
        for i, layer in enumerate(layers):
            weight, bias = constants[layer.weight], constants.get(layer.bias, np.zeros(0, np.float32))
            self.weights.append(nn.Parameter(torch.from_numpy(np.array(weight.T if layer.transposed else weight))))
            self.biases.append(nn.Parameter(torch.from_numpy(np.array(bias)), requires_grad=bias.size > 0))
            made, conv = parts.node(layer.made), parts.weighted(layer)
            self._run.layers[made] = i, conv, placement.layers.get(layer.node)
            if conv is not made:
                self._run.postponed.add(conv)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) -> logits (batch, classes)."""
        state = self.network.state_dict(keep_vars=True)
        given = []
        for spec in self._program.graph_signature.input_specs:
            if spec.target is None:
                given.append(inputs)
            else:
                given.append(state[spec.target] if spec.target in state else self._program.constants[spec.target])
        return self._run.run(*given, enable_io_processing=False)[0]  # type: ignore[no-any-return]


class Parts:
    """Finds the fx nodes of a captured network by the names of values in the exported graph.

    Attributes:
        tensors: name of an fx node -> name of the parameter or buffer that it stands for.
    """

    def __init__(self, program: ExportedProgram, signature: Signature) -> None:
        self._nodes: dict[str, Node] = {}
        graph_signature = program.graph_signature
        self.tensors = dict(graph_signature.inputs_to_parameters) | dict(graph_signature.inputs_to_buffers)
        for node in program.graph.nodes:
            if node.op == "call_function":
                self._nodes.setdefault(node.name, node)
                if node.target is getitem and node.args[1] == 0:
                    self._nodes[node.args[0].name] = node  # a pooling may give (values, places): the first is meant
            elif node.op == "placeholder" and node.name in graph_signature.user_inputs:
                self._nodes[signature.input_name] = node
            elif node.op == "output":
                self._nodes[signature.output_name] = node.args[0][0]

    def node(self, value: str) -> Node:
        """The fx node that makes a value."""
        if value not in self._nodes:
            raise StageError(
                f"torch cannot be made to round value {value!r} of the int8 graph: it is not in the captured network"
            )
        return self._nodes[value]

    def weighted(self, layer: Layer) -> Node:
        """The convolution or linear layer; what makes the layer's value may be the batch norm behind it."""
        node = self.node(layer.made)
        before = node.args[0]
        if node.target is _NORM and isinstance(before, Node) and len(before.users) == 1:
            node = before
        if node.target not in AXES:
            raise StageError(f"torch cannot be made to round the weights of {layer.node!r}: {node.target} uses them")
        if AXES[node.target] == 1 and len(node.args) > 6 and node.args[6] != 1:
            raise StageError(
                f"torch cannot be made to round the weights of {layer.node!r}: transposed convolution in groups"
            )
        return node


class _Run(Interpreter):
    """Runs the captured network, rounding on the way.

    Attributes:
        rounded: nodes whose value is rounded.
        layers: what makes the value of a layer -> (its number, its convolution or the like, how it rounds: see
            `Placement.layers`).
        postponed: convolutions that wait for the batch norm behind them, to be one with it.
    """

    def __init__(self, owner: FakeQuantized, placement: Placement, largest: int) -> None:
        super().__init__(owner._program.graph_module)
        self._owner, self._placement, self._largest = owner, placement, largest
        self.rounded: dict[Node, Grid] = {}
        self.layers: dict[Node, tuple[int, Node, tuple[str, bool, int] | None]] = {}
        self.postponed: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        """What a node gives; for a postponed one, its arguments."""
        if n in self.postponed:
            return self.fetch_args_kwargs_from_env(n)
        made = self._layer(n) if n in self.layers else super().run_node(n)
        grid = self.rounded.get(n)
        if grid is None:
            return made
        return torch.fake_quantize_per_tensor_affine(made, grid.step, grid.zero, grid.low, grid.high)

    def _layer(self, n: Node) -> Tensor:
        """Computes with weights and bias of the graph, rounded if they are there."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        i, conv, rounding = self.layers[n]
        if conv is not n:
            args, kwargs = args[0]
        weight, bias = self._owner.weights[i], self._owner.biases[i] if self._owner.biases[i].numel() else None
        if rounding is not None:
            weight, bias = self._rounded(weight, bias, AXES[conv.target], *rounding)  # type: ignore[index]
        return conv.target(args[0], weight, bias, *args[3:], **kwargs)  # type: ignore[no-any-return, operator]

    def _rounded(
        self, weight: Tensor, bias: Tensor | None, axis: int, grid: str, whole_bias: bool, scales: int
    ) -> tuple[Tensor, Tensor | None]:
        of_input = self._placement.grids[grid].step
        step = _weight_step(weight, axis if scales > 1 else None, self._largest)
        if whole_bias and bias is not None:
            widest = bias.detach().abs()
            step = torch.maximum(step, (widest if scales > 1 else widest.max()) * _INT32 / of_input)
            bias = _straight(bias, step * of_input)
        return _straight(weight, step.view(along(weight, axis)) if scales > 1 else step), bias


def along(weight: Tensor, axis: int) -> list[int]:
    """Shape in which one number per channel meets the weights."""
    return [-1 if i == axis else 1 for i in range(weight.ndim)]


@torch.no_grad()
def _weight_step(weight: Tensor, axis: int | None, largest: int) -> Tensor:
    axes = [i for i in range(weight.ndim) if i != axis]
    step = weight.abs().amax(axes) / largest
    return torch.where(step < _TINY, 1.0, step)


def _straight(x: Tensor, step: Tensor) -> Tensor:
    """Rounds to whole steps; the gradient passes as if nothing had happened."""
    return (x.detach() / step).round() * step + (x - x.detach())
