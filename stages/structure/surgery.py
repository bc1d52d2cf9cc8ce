"""Cuts, replayed one layer at a time. Needs no pruning library: a cut is data, written by whoever decided on it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stages.base import Surgery
from stages.structure.stand_ins import Through, Zero
from targets.errors import StageError

__all__ = ["CONVOLUTIONS", "NORMS", "depthwise", "operate"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    nn.PReLU,
)


def operate(module: nn.Module, surgery: Iterable[Surgery]) -> nn.Module:
    """Makes the cuts in place, in order, and returns the module.

    Convolutions and linear layers take "out" and "in"; a depthwise convolution takes "out", which removes the channel
    on both sides; an embedding takes "out"; batch norms, instance norms and PReLU take "norm"; any module takes
    "identity" and "zero"; an integer attribute takes "count".

    Raises:
        StageError: a module is missing, cannot take the cut, or lacks the channels: the source has changed since.
    """
    for cut in surgery:
        if cut.kind == "count":
            _cut_count(module, cut)
            continue
        try:
            target = module.get_submodule(cut.module)
        except AttributeError:
            raise StageError(
                f"{cut.module} is to be cut, and the network has no such module: has it changed?"
            ) from None
        if cut.kind in ("identity", "zero"):
            _stand_in(module, cut)
        elif cut.kind == "norm" and isinstance(target, NORMS):
            _cut_norm(target, cut)
        elif cut.kind == "out" and isinstance(target, nn.Embedding):
            kept = _kept(cut, target.embedding_dim)
            target.weight, target.embedding_dim = _select(target.weight, 1, kept), len(kept)
        elif cut.kind in ("out", "in") and isinstance(target, nn.Linear):
            _cut_linear(target, cut)
        elif cut.kind in ("out", "in") and isinstance(target, CONVOLUTIONS):
            _cut_convolution(target, cut)
        else:
            raise StageError(f"{cut.module} is a {type(target).__name__} and has no {cut.kind!r} channels to remove")
    return module


def depthwise(layer: nn.Module) -> bool:
    """Whether each output channel of a convolution reads its own input channel only."""
    return isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _stand_in(module: nn.Module, cut: Surgery) -> None:
    """Replaces a block, and what only worked for it."""
    stand_in = Through(cut.indexes) if cut.kind == "identity" else Zero(cut.indexes)
    module.set_submodule(cut.module, stand_in, strict=True)
    for name in cut.idle:
        try:
            module.set_submodule(name, Through(), strict=True)
        except AttributeError:
            raise StageError(f"{name} is to go with {cut.module}, and is not there: has the network changed?") from None


def _cut_count(module: nn.Module, cut: Surgery) -> None:
    """An attribute that the forward reads, as the number of heads, follows what was cut."""
    path, _, name = cut.module.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        owner = None
    number = getattr(owner, name, None)
    if owner is None or type(number) is not int:
        raise StageError(f"{cut.module} is to count less, and the network has no such integer: has it changed?")
    setattr(owner, name, len(_kept(cut, number)))


def _kept(cut: Surgery, channels: int) -> Tensor:
    gone = set(cut.indexes)
    if not gone or min(gone) < 0 or max(gone) >= channels or len(gone) >= channels:
        raise StageError(f"{cut.module}: cannot remove {len(gone)} channels {cut.kind} of {channels}: has it changed?")
    return torch.tensor([i for i in range(channels) if i not in gone])


def _select(parameter: Tensor, dim: int, kept: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, kept), parameter.requires_grad)


def _cut_linear(layer: nn.Linear, cut: Surgery) -> None:
    if cut.kind == "in":
        kept = _kept(cut, layer.in_features)
        layer.weight, layer.in_features = _select(layer.weight, 1, kept), len(kept)
        return
    kept = _kept(cut, layer.out_features)
    layer.weight, layer.out_features = _select(layer.weight, 0, kept), len(kept)
    if layer.bias is not None:
        layer.bias = _select(layer.bias, 0, kept)


def _cut_convolution(layer: nn.modules.conv._ConvNd, cut: Surgery) -> None:
    through = depthwise(layer)
    if layer.groups > 1 and not (through and cut.kind == "out"):
        raise StageError(f"{cut.module} is a grouped convolution: {cut.kind!r} channels cannot be removed one by one")
    if cut.kind == "in":
        kept = _kept(cut, layer.in_channels)
        layer.weight, layer.in_channels = _select(layer.weight, 0 if layer.transposed else 1, kept), len(kept)
        return
    kept = _kept(cut, layer.out_channels)
    layer.weight = _select(layer.weight, 1 if layer.transposed and not through else 0, kept)
    layer.out_channels = len(kept)
    if through:
        layer.in_channels = layer.groups = len(kept)
    if layer.bias is not None:
        layer.bias = _select(layer.bias, 0, kept)


def _cut_norm(layer: nn.Module, cut: Surgery) -> None:
    """Cuts every parameter and buffer that has one number per channel."""
    size = "num_parameters" if isinstance(layer, nn.PReLU) else "num_features"
    channels = getattr(layer, size)
    kept = _kept(cut, channels)
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, _select(parameter, 0, kept))
    for name, buffer in list(layer.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(layer, name, buffer.index_select(0, kept))
    setattr(layer, size, len(kept))
