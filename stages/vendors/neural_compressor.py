"""neural-compressor's static quantization in torch (PT2E), used for its ranges only.

Exported as it comes, its network is slower and larger than float: weights stay float behind a QuantizeLinear and
residual sums have none. So its decisions are carried over: they are keyed by the fx names of values, which
`stages.export` keeps as value names in the ONNX graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import neural_compressor.common.utils  # noqa: F401  # sets its logger up, which can then be stilled
import torch
from torch import nn

from stages.base import Signature
from stages.graph import Floats
from stages.quiet import quiet
from stages.vendors.ort_quantizer import Ranges
from targets.errors import StageError

__all__ = ["activation_ranges"]

# Progress, at INFO and WARNING; libraries for other hardware that torchao looks for; torch's jit, which it imports.
CHATTER = ("neural_compressor", "torchao", "torchao.kernel.intmm", "torch.utils._pytree")
JIT = r"`torch\.jit\.script_method` is deprecated"

ALGORITHMS = {"minmax": "minmax", "entropy": "kl"}

_ATEN = torch.ops.aten
AVERAGES = (_ATEN.mean.dim, _ATEN.adaptive_avg_pool2d.default, _ATEN.avg_pool2d.default)


def activation_ranges(
    module: nn.Module,
    signature: Signature,
    batches: Iterable[Floats],
    method: Literal["minmax", "percentile", "entropy"] = "minmax",
) -> Ranges:
    """Ranges that neural-compressor chooses for activations, by the value names of `stages.export`.

    It has none for what it leaves float: the second summand and the sum of a residual add, the logits.
    Memory is bounded by one batch; its observers keep numbers or one histogram per value.

    Args:
        module: the network in eval mode; left as it is.
        batches: inputs (batch, ...), read once.
        method: minmax (a moving average of each batch's extremes) or entropy (its "kl").

    Raises:
        StageError: it has no such method, could not capture the network, or found nothing to quantize.
    """
    if method not in ALGORITHMS:
        raise StageError(
            f"neural-compressor has no {method!r} calibration: choose minmax or entropy, or engine onnxruntime"
        )
    with quiet(CHATTER, [JIT]), torch.no_grad():
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import StaticQuantConfig, prepare

        example = torch.zeros(2, *signature.input_shape)
        dynamic = ({0: torch.export.Dim("batch", min=1)},)
        try:
            captured = export(module, (example,), dynamic_shapes=dynamic)
            names = _names(captured, signature)
            prepared = prepare(captured, StaticQuantConfig(act_algo=ALGORITHMS[method]))
            for inputs in batches:
                prepared(torch.from_numpy(inputs))
            ranges = _ranges(prepared, names)
        except Exception as error:  # it raises bare RuntimeError and AssertionError, and whatever torch raises inside
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StageError(
                f"neural-compressor failed: {reason}. Engine onnxruntime needs no torch network"
            ) from error
    if not ranges:
        raise StageError("neural-compressor found nothing to quantize in the network")
    return ranges


def _names(captured: Any, signature: Signature) -> dict[str, str]:
    """fx name -> name in the exported graph: the border's names, and convolutions whose batch norm will be folded."""
    names: dict[str, str] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            names[node.name] = signature.input_name
        elif node.op == "output":
            names[node.args[0][0].name] = signature.output_name
        elif node.target is torch.ops.aten.batch_norm.default and len(node.args[0].users) == 1:
            names[node.args[0].name] = node.name
    return names


def _ranges(prepared: Any, names: dict[str, str]) -> Ranges:
    """What the observers decided: (qmin - zero point) * scale to (qmax - zero point) * scale.

    They are asked directly: `convert` would do no more for ranges, and takes minutes where a batch norm stands alone.
    Pooling and reshaping share the observer of what they read. It tells about what they read; but where one of them
    averages, its smaller numbers have pulled the range down, batch by batch, and it is left out.
    """
    watched: dict[Any, list[Any]] = {}  # observer -> the nodes whose values it has seen
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args:
            observer = prepared.get_submodule(node.target)
            if hasattr(observer, "calculate_qparams") and node.args[0].op != "get_attr":  # weights are attributes
                watched.setdefault(observer, []).append(node.args[0])
    ranges: Ranges = {}
    for observer, values in watched.items():
        if any(value.target in AVERAGES for value in values[1:]):
            continue
        scale, zero = (float(number) for number in observer.calculate_qparams())
        name = values[0].name
        ranges[names.get(name, name)] = (observer.quant_min - zero) * scale, (observer.quant_max - zero) * scale
    return ranges
