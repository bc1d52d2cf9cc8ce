"""Whole blocks that may leave a network, and shorter networks made of those that stay.

    residual blocks      with their weights at zero they hand on exactly what they got
    residual branches    `x = x + f(x)` in the middle of a forward (`stages.structure.branches`)
    plain layers         any other part with weights that gives the shape that it gets

Looked for in a copy with random weights, so that trained and fresh networks have the same blocks; each is tried once
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from stages.base import Surgery
from stages.structure.anatomy import Block, inside
from stages.structure.branches import Branch, branches, outermost, projections
from stages.structure.calls import Call, disturbed, layers, watched
from stages.structure.stand_ins import Form, first, form_of
from stages.structure.strands import tried
from stages.structure.surgery import operate
from stages.structure.trial import Cut, fault, silence
from stages.structure.wiring import Wiring, bits
from targets.errors import StageError

__all__ = ["blocks", "removable", "shorten"]


def blocks(module: nn.Module, inputs: Tensor) -> tuple[tuple[Block, ...], dict[str, str]]:
    """Every block that may leave, in the order of execution, none inside another; and by name why others stay.

    Of a residual block that holds several branches the branches are the blocks; else of nested ones the innermost, and
    of those that hold the same layers the outermost.

    Args:
        module: in eval mode; stays as it is.
        inputs: (batch, ...), real inputs that each is tried on.

    Raises:
        StageError: the network cannot be traced.
    """
    return _Search(module, inputs).result()


class _Search:
    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        self.module, self.inputs = disturbed(module, inputs), inputs
        self.wiring = Wiring(self.module, inputs)
        self.calls = watched(self.module, inputs)
        self.found: list[Block] = []
        self.gone: dict[str, int] = {}  # by block, the nodes that leave with it
        self.refused: dict[str, str] = {}

    def result(self) -> tuple[tuple[Block, ...], dict[str, str]]:
        residual = _ways_through(self.module, self.calls)
        parts, self.refused = branches(self.wiring, {name: len(calls) for name, calls in self.calls.items()})
        for name, form in residual.items():
            within = [part for part in parts if inside(part.module, name)]
            # Two branches that can leave one by one are worth more than one block that can only leave as a whole.
            if len(within) < 2 or len(self._branches(within)) < 2:
                self.found = [block for block in self.found if not inside(block.name, name)]
                self._try(Surgery(name, "identity", form), self.wiring.within[name])
            parts = [part for part in parts if part not in within]
        self._branches(parts)
        self._plain()
        self._together()
        self._shapes(residual)
        order = {name: calls[0].order for name, calls in self.calls.items() if calls}
        names = [name for block in self.found for name in (block.name, *block.surgery.idle)]
        refused = {name: why for name, why in self.refused.items() if not any(inside(name, n) for n in names)}
        return tuple(sorted(self.found, key=lambda block: order[block.name])), refused

    def _try(self, surgery: Surgery, nodes: int) -> bool:
        if why := fault(self.module, (surgery,), self.inputs):
            self.refused[surgery.module] = why
            return False
        self.found.append(Block(surgery.module, surgery, self.wiring.digest(nodes)))
        self.gone[surgery.module] = nodes
        return True

    def _branches(self, parts: Sequence[Branch]) -> list[Branch]:
        """Those that pass their trials; of nested ones the innermost."""
        good = []
        for part in parts:
            names = (part.module, *part.idle)
            if any(inside(other.module, name) for other in parts if other is not part for name in names):
                continue
            form = self.calls[part.module][0].form
            if form is None:
                self.refused[part.module] = "it returns something else than a tensor or a tuple with one"
                continue
            heavy = [name for name in part.idle if any(True for _ in self.module.get_submodule(name).parameters())]
            idle = outermost(name for name in heavy if self.calls[name][0].form == ())
            same = outermost(name for name in heavy if self.calls[name][0].form == () and self.calls[name][0].same)
            # What nobody listens to may stay and work for nothing, if its shapes are needed to get through the forward.
            for silent in dict.fromkeys((tuple(idle), tuple(same), ())):
                if self._try(Surgery(part.module, "zero", form, silent), part.nodes):
                    self.refused.pop(part.module, None)
                    good.append(part)
                    break
        return good

    def _plain(self) -> None:
        """Layers that could hand on what they get, besides the residual ones."""
        taken = 0
        for block in self.found:
            taken |= self.gone[block.name]
        free: dict[frozenset[str], str] = {}
        shared = []
        for name, inner in self.module.named_modules():
            calls = self.calls.get(name, [])
            held = frozenset(f"{name}.{layer}" if layer else name for layer in layers(inner))
            if not held or not calls or not all(call.same and call.form is not None for call in calls):
                continue
            if self.wiring.within.get(name, 0) & taken:
                continue
            if len(calls) > 1:
                shared.append(name)
            elif held not in free:
                free[held] = name
        self.refused |= {name: f"it is called {len(self.calls[name])} times" for name in outermost(shared)}
        gone: list[frozenset[str]] = []
        for held, name in sorted(free.items(), key=lambda item: len(item[0])):  # what is inside comes first
            if any(other < held for other in gone):
                continue
            form = self.calls[name][0].form
            assert form is not None
            nodes, norm = self.wiring.within[name], self._norm_behind(name)
            if nodes & self.wiring.last:
                self.refused[name] = "it gives the network's outputs"
            elif self._try(Surgery(name, "identity", form, norm), nodes | sum(self.wiring.within[n] for n in norm)):
                gone.append(held)

    def _norm_behind(self, name: str) -> tuple[str, ...]:
        """The norm that only scales what one layer gives: alone it would be left over, as an operator of its own."""
        if any(True for _ in self.module.get_submodule(name).children()):
            return ()
        last = max(bits(self.wiring.within[name]))
        users = [self.wiring.place[user] for user in self.wiring.nodes[last].users]
        path = self.wiring.paths[users[0]] if len(users) == 1 else ()
        norm = path[-1] if path and not inside(path[-1], name) else ""
        calls = self.calls.get(norm, [])
        weights = [*self.module.get_submodule(norm).parameters()] if norm else []
        scales = bool(weights) and all(weight.ndim == 1 for weight in weights)
        return (norm,) if scales and len(calls) == 1 and calls[0].same and calls[0].form == () else ()

    def _together(self) -> None:
        """Blocks that hold alone may not all go: some may need each other, and some alone may bring the inputs to the
        outputs (attention, where a class token is read). The last of those stays."""
        _, faults = tried(self.module, self.inputs, {block.name: (block.surgery,) for block in self.found})
        self.refused |= faults
        self.found = [block for block in self.found if block.name not in faults]
        while self.found and self._blind(self.found):
            others = {block.name: [other for other in self.found if other is not block] for block in self.found}
            stays = next((name for name in reversed(others) if not self._blind(others[name])), self.found[-1].name)
            self.refused[stays] = "without it and all others, nothing would bring the inputs to the outputs"
            self.found = others[stays]

    def _blind(self, gone: Sequence[Block]) -> bool:
        """Whether the network without these blocks answers all inputs alike."""
        x = self.inputs if len(self.inputs) > 1 else torch.cat([self.inputs, torch.zeros_like(self.inputs)])
        with torch.no_grad():
            y = operate(deepcopy(self.module), [block.surgery for block in gone])(x)
        return float((y - y[:1]).abs().max()) <= 1e-5 * float(y.abs().max())

    def _shapes(self, residual: Mapping[str, Form]) -> None:
        """Says why those stay that look like the others: residual blocks that change the shape."""
        alike = {(name.rpartition(".")[0], type(self.module.get_submodule(name))) for name in residual}
        looks = [name for name, inner in self.module.named_modules() if (name.rpartition(".")[0], type(inner)) in alike]
        for name in dict.fromkeys((*projections(self.wiring), *looks)):
            calls = self.calls.get(name, [])
            cut = any(block.surgery.kind == "zero" and inside(block.name, name) for block in self.found)
            if cut or len(calls) != 1:
                continue
            if calls[0].before and calls[0].after and not calls[0].same:
                self.refused.setdefault(name, f"its shape changes from {calls[0].before} to {calls[0].after}")
            elif not any(inside(name, block.name) for block in self.found):
                self.refused.setdefault(name, "both ways to its sum hold layers with weights")


def shorten(module: nn.Module, inputs: Tensor, keep: float) -> Cut:
    """Keeps a share of the residual blocks, evenly spread over each run of blocks; the others become identities.

    A run is the blocks of one kind inside one parent, those that cannot go among them; at least one of a run stays.

    Args:
        module: in eval mode; stays as it is.
        inputs: (batch, ...), real inputs.
        keep: share of each run's blocks, rounded to the nearest number.

    Raises:
        StageError: there is no block that could go.
    """
    if keep == 1:
        return Cut(deepcopy(module), ())
    free = _ways_through(module, watched(module, inputs))
    if not free:
        raise StageError(
            "no block can be removed: none hands its input on when its weights are zero, as a residual block does; "
            "use `by: channels`, or a student with a `source` of its own"
        )
    gone: list[str] = []
    for run in _runs(module, list(free)):
        loose = [name for name in run if name in free]
        stay = max(0, max(1, math.floor(len(run) * keep + 0.5)) - (len(run) - len(loose)))
        spread = {math.floor((i + 0.5) * len(loose) / stay) for i in range(stay)}
        gone += [name for i, name in enumerate(loose) if i not in spread]
    if not gone:
        return Cut(deepcopy(module), (), (f"keep {keep:g} removes no block: the runs of blocks are too short",))
    surgery = tuple(Surgery(name, "identity", free[name]) for name in gone)
    if why := fault(module, surgery, inputs):
        raise StageError(f"{', '.join(gone)} cannot be removed: {why}")
    return Cut(operate(deepcopy(module), surgery), surgery, (f"removed blocks: {', '.join(gone)}",))


def removable(module: nn.Module, inputs: Tensor) -> list[str]:
    """Residual modules that can become identities: with their weights at zero they hand on exactly what they got, so
    only the way around their layers is left. Of nested ones the innermost, in the network's order.

    Args:
        module: in eval mode.
        inputs: (batch, ...), real inputs.
    """
    return list(_ways_through(module, watched(module, inputs)))


def _ways_through(module: nn.Module, calls: Mapping[str, Sequence[Call]]) -> dict[str, Form]:
    """By name of each such module, in which form it returns its tensor."""
    found: dict[str, Form] = {}
    for name, inner in module.named_modules():
        if len(once := calls.get(name, [])) == 1 and any(True for _ in layers(inner)):
            form = _passes(inner, once[0])
            if form is not None:
                found[name] = form
    return {name: form for name, form in found.items() if not any(other.startswith(f"{name}.") for other in found)}


def _passes(block: nn.Module, call: Call) -> Form | None:
    x = first(call.args, call.kwargs)
    if not call.same or not isinstance(x, Tensor) or not x.any():
        return None
    args, kwargs = deepcopy((call.args, call.kwargs))
    with torch.no_grad():
        try:
            y = silence(deepcopy(block))(*args, **kwargs)
        except Exception:  # what cannot run alone is no block that could go
            return None
    form = form_of(y)
    if form is None:
        return None
    y = y[form[0]] if form else y
    return form if y.shape == x.shape and torch.equal(x, y) else None


def _runs(module: nn.Module, free: Sequence[str]) -> list[list[str]]:
    """For each kind of removable block in each parent: all siblings of that kind, in order."""
    found: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name in free:
        parent, kind = name.rpartition(".")[0], type(module.get_submodule(name))
        siblings = module.get_submodule(parent).named_children()
        found[parent, kind] = [f"{parent}.{n}" if parent else n for n, child in siblings if type(child) is kind]
    return list(found.values())
