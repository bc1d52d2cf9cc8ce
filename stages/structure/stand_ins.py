"""What stands where a block was: modules without weights that take whatever the block took and return it as it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Form", "Through", "Zero", "first", "form_of", "shaped"]

Form = tuple[int, ...]
"""How a module returns its tensor: () as it is, (place, length) in a tuple of that length; the rest becomes None."""


class Through(nn.Identity):
    """Hands its first input on and takes no notice of others (masks, say)."""

    def __init__(self, form: Form = ()) -> None:
        super().__init__()
        self.form = form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Any tensors, the first of shape (batch, ...) -> that one, in the form that the block had."""
        return shaped(first(args, kwargs), self.form)


class Zero(nn.Module):
    """Gives one zero with as many axes as its first input: a sum spreads it, and an exported graph folds it away."""

    def __init__(self, form: Form = ()) -> None:
        super().__init__()
        self.form = form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Any tensors, the first of shape (batch, ...) -> (1, ...), in the form that the block had."""
        x = first(args, kwargs)
        kind = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return shaped(torch.zeros((1,) * x.ndim, dtype=kind, device=x.device), self.form)


def first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first of a call's arguments, in the order in which they were written; None if there is none."""
    return next(iter((*args, *kwargs.values())), None)


def form_of(output: object) -> Form | None:
    """How a module returned its tensor; None where that is neither alone nor in a tuple. Of several tensors in a tuple
    the first counts: whoever reads the others will fail the trial."""
    if isinstance(output, Tensor):
        return ()
    if type(output) not in (tuple, list):
        return None
    assert isinstance(output, (tuple, list))
    place = next((i for i, part in enumerate(output) if isinstance(part, Tensor)), None)
    return None if place is None else (place, len(output))


def shaped(x: Tensor, form: Form) -> Tensor | tuple[Tensor | None, ...]:
    """A tensor in the form that a module returned."""
    if not form:
        return x
    place, length = form
    return tuple(x if i == place else None for i in range(length))
