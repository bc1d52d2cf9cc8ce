"""What each module of a network gets and gives, seen in a forward pass; and networks whose weights tell nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stages.network import seeded
from stages.structure.stand_ins import Form, first, form_of

__all__ = ["Call", "disturbed", "layers", "removed", "watched"]


@dataclass
class Call:
    """What a module got, and in which form and shape it answered.

    Attributes:
        order: its place among all calls, from 0.
        before, after: shapes without the batch axis, () where there is no tensor.
        same: whether the tensor that it gives has the shape and type of the first one that it gets.
    """

    order: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    form: Form | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    same: bool = False


def watched(module: nn.Module, inputs: Tensor) -> dict[str, list[Call]]:
    """Every call of every module, by name.

    Args:
        module: in eval mode.
        inputs: (batch, ...).
    """
    calls: dict[str, list[Call]] = {}
    waiting: list[Call] = []

    def begin(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first(args, kwargs)
        copies = {id(x): x.clone()} if isinstance(x, Tensor) else {}  # it may be written over
        call = Call(
            sum(map(len, calls.values())),
            tuple(copies.get(id(arg), arg) for arg in args),
            {key: copies.get(id(arg), arg) for key, arg in kwargs.items()},
        )
        calls.setdefault(name, []).append(call)
        waiting.append(call)

    def end(output: Any) -> None:
        call = waiting.pop()
        call.form = form_of(output)
        x = first(call.args, call.kwargs)
        if call.form is not None and isinstance(x, Tensor):
            y = output[call.form[0]] if call.form else output
            call.before, call.after = tuple(x.shape[1:]), tuple(y.shape[1:])
            call.same = x.shape == y.shape and x.dtype == y.dtype

    hooks = []
    for name, inner in module.named_modules():
        if name:
            hooks.append(
                inner.register_forward_pre_hook(lambda _, a, k, name=name: begin(name, a, k), with_kwargs=True)
            )
            hooks.append(inner.register_forward_hook(lambda _, __, output: end(output)))
    with removed(hooks), torch.no_grad():
        module(inputs)
    return calls


@contextmanager
def removed(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Takes hooks off modules again, whatever happens."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def disturbed(module: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy with random weights, none of them zero, and norms that fit them: what training has left or not yet done
    (branches that begin at zero, say) must not matter. Where that gives no numbers, the weights as they are."""
    copy = deepcopy(module)
    with seeded(0), torch.no_grad():
        for name, parameter in copy.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim >= 2:
                parameter.normal_(0, math.sqrt(2 * parameter.shape[0] / parameter.numel()))
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.uniform_(0.5, 1.5)
        norms = [m for m in copy.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        hooks = [norm.register_forward_pre_hook(_settle) for norm in norms]
        with removed(hooks):
            fits = bool(torch.isfinite(copy(inputs)).all())
    return copy if fits else deepcopy(module)


def _settle(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Sets a batch norm's statistics to those of what it gets."""
    x = args[0].transpose(0, 1).flatten(1)
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    norm.running_mean.copy_(x.mean(1))
    norm.running_var.copy_(x.var(1, unbiased=False) + 0.01)


def layers(module: nn.Module) -> list[str]:
    """Layers with weights inside: modules that own a parameter of two or more axes. Norms and scales are none."""
    return [name for name, layer in module.named_modules() if any(p.ndim >= 2 for p in layer.parameters(recurse=False))]
