"""The structure of a network that fits a budget: chosen by a table, measured, and chosen again.

up to four times:
    the most important structure that fits (`choice`) by what the table says
    it is measured on the target, and what it took corrects the table
    prediction and measurement of what is limited agree within 5 %? done
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stages.base import Context
from stages.settings import PruneConfig
from stages.structure.anatomy import Anatomy, Shape
from stages.structure.choice import choose, excess
from stages.structure.table import Costs, Saving
from stages.structure.variants import Batches
from stages.structure.worth import Worth, worth
from targets.budget import METRICS
from targets.errors import StageError

__all__ = ["Bench", "Fit"]

_ROUNDS = 3
_CHECKS = 4
_AGREE = 0.05
_BATCH = 64
_SHOWN = 3  # units that stay whole, in a message
_SIZES = ("size_mb", "peak_memory_mb")


class Bench(Protocol):
    """What measures structures: `StructureBench`."""

    def costs(self) -> Costs:
        """The table."""
        ...

    def check(self, shape: Shape, costs: Costs, *, timed: bool = True) -> Saving:
        """Size of a structure, and its median latency if that is wanted."""
        ...


@dataclass
class Fit:
    """Chooses, measures, and chooses again.

    Attributes:
        limits: of the budget; the choice aims at `config.aim` of them.
        worst: by strand, its channels in the order in which they leave, as last appraised.
        checked: median latency of the structure found, milliseconds; None where it was not measured.
    """

    module: nn.Module
    anatomy: Anatomy
    costs: Costs
    limits: Mapping[str, float]
    config: PruneConfig
    context: Context
    bench: Bench
    worst: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    checked: float | None = None
    appraised: dict[tuple[frozenset[str], frozenset[tuple[str, int]]], Worth] = field(default_factory=dict)

    def found(self) -> Shape:
        """The structure to cut.

        Raises:
            StageError: nothing that may go saves anything.
        """
        aimed = _aimed(self.limits, self.config.aim)
        if unknown := [name for name in self.limits if name not in self.costs.whole]:
            self.notes.append(f"not predicted on this target, so not looked at: {', '.join(unknown)}")
        binding = {name for name, over in excess(self.costs.whole, aimed).items() if over > 0}
        if not binding:
            told = ", ".join(f"{n} {self.costs.whole[n]:.3g} of {self.limits[n]:g}" for n in aimed if n not in unknown)
            self.notes.append(f"the whole network fits: {told or 'no limit could be predicted'}")
            return Shape()
        anatomy = _paying(self.anatomy, self.costs, binding)
        shape = choose(anatomy, self.costs, aimed, partial(self._worth, anatomy), self.config.steps or _ROUNDS)
        shape = self._measured(anatomy, aimed, shape, timed=not binding <= set(_SIZES))
        predicted = self.costs.predict(self.anatomy, shape)
        if over := [name for name, by in excess(predicted, self.limits).items() if by > 0]:
            self.notes.append(f"the closest structure, yet not within {', '.join(over)}: the verdict will tell")
        for name in (name for name in aimed if name in binding):
            was = f"{self.costs.whole[name]:.3g} in the whole network"
            told = f"{name} {predicted[name]:.3g} predicted, {aimed[name]:.3g} aimed at, limit {self.limits[name]:g}"
            self.notes.append(f"{told}, {was}")
        return shape

    def figures(self, shape: Shape) -> dict[str, float]:
        """Predictions and the last check, for the report."""
        predicted = self.costs.predict(self.anatomy, shape)
        shown = {name: predicted[name] for name in predicted if name in {*self.limits, "latency_p50_ms", "size_mb"}}
        found = {f"predicted_{name}": value for name, value in shown.items()}
        return found if self.checked is None else {**found, "checked_latency_p50_ms": self.checked}

    def _measured(self, anatomy: Anatomy, aimed: Mapping[str, float], shape: Shape, timed: bool) -> Shape:
        """The structure once prediction and measurement agree; after the last check, of those that were measured the
        largest that fits.

        Args:
            timed: whether latency is measured; else size alone.
        """
        tried: list[tuple[Shape, Costs, Saving]] = []
        limited = {"size_mb" if name in _SIZES else "latency_p50_ms" for name in self.limits}
        for number in range(1, _CHECKS + 1):
            self.context.progress(0.5 + 0.1 * number, f"measuring structure {number} on the target")
            predicted, found = self.costs.predict(self.anatomy, shape), self.bench.check(shape, self.costs, timed=timed)
            told = [
                f"{name} {predicted[name]:.3g} predicted, {value:.3g} found ({predicted[name] / value - 1:+.1%})"
                for name, value in sorted(found.items())
            ]
            self.notes.append(f"check {number}: {'; '.join(told)}")
            self.context.say(self.notes[-1])
            self.checked = found.get("latency_p50_ms")
            self.costs = self.costs.corrected(self.anatomy, shape, found)
            tried.append((shape, self.costs, found))
            if all(abs(predicted[name] / found[name] - 1) <= _AGREE for name in limited & found.keys()):
                return shape
            again = choose(anatomy, self.costs, aimed, partial(self._worth, anatomy), 1, shape)
            if again == shape:
                return shape
            shape = again
        fitting = [one for one in tried if not any(excess(one[1].predict(self.anatomy, one[0]), aimed).values())]
        if not fitting:
            self.checked = None
            self.notes.append(
                f"prediction and measurement still differ after {_CHECKS} checks: the last was not measured"
            )
            return shape
        key = "latency_p50_ms" if timed else "size_mb"
        shape, self.costs, found = max(fitting, key=lambda one: one[2][key])
        self.checked = found.get("latency_p50_ms")
        return shape

    def _worth(self, anatomy: Anatomy, shape: Shape) -> Worth:
        """What units are worth in a structure; its channels leave in the order of the appraisal before."""
        key = shape.gone, frozenset(shape.widths.items())
        if key not in self.appraised:
            self.context.say(f"appraising {len(anatomy.blocks)} blocks and {len(anatomy.strands)} groups of channels")
            batches = _batches(self.context, self.config.samples)
            self.appraised[key] = worth(self.module, anatomy, batches, shape, self.worst)
        found = self.appraised[key]
        self.worst = {strand.name: found.worst(strand) for strand in anatomy.strands}
        return found


def _aimed(limits: Mapping[str, float], aim: float) -> dict[str, float]:
    """The share of each limit that is to be spent."""
    return {name: limit * aim if METRICS[name] == "at most" else limit / aim for name, limit in limits.items()}


def _batches(context: Context, samples: int) -> Batches:
    """Training examples, evenly spread: splits may be sorted by class."""
    train = context.data.train
    index = np.linspace(0, len(train) - 1, min(samples, len(train))).astype(np.int64)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(index), _BATCH):
            part = index[start : start + _BATCH]
            x = torch.from_numpy(train.inputs(part))
            # Convolutions on a CPU are faster so.
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            yield x, torch.from_numpy(train.labels[part])

    return batches


def _paying(anatomy: Anatomy, costs: Costs, binding: set[str]) -> Anatomy:
    """The units that save something of what is exceeded: only they need to be appraised."""
    columns = {"size_mb" if name in _SIZES else "latency_p50_ms" for name in binding}
    blocks = tuple(b for b in anatomy.blocks if any(costs.blocks.get(b.kind, {}).get(c, 0) > 0 for c in columns))
    strands = tuple(
        s
        for s in anatomy.strands
        if any(at.get(c, 0) > 0 for at in costs.strands.get(s.kind, {}).values() for c in columns)
    )
    if not blocks and not strands:
        why = "; ".join(f"{name}: {reason}" for name, reason in [*anatomy.refused.items()][:_SHOWN])
        raise StageError(
            f"prune to budget: none of {len(anatomy.blocks)} blocks and {len(anatomy.strands)} groups of channels "
            f"saves any of {', '.join(sorted(binding))}" + (f" ({why})" if why else "")
        )
    return replace(anatomy, blocks=blocks, strands=strands)
