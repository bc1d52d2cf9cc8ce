"""What structures of a network cost on a target, measured on graphs as they would ship, before anything is trained.

    measure     the whole network, its float form and the smallest structure: all that a budget limits
    race        without all blocks of a kind; with all strands of a kind at a quarter of their channels
    race        at a half and three quarters too, for kinds whose time a quarter of the channels changed

In a race all graphs run in turns with the whole network: a saving is a ratio, and the machine's drift cancels. A saving
within the noise around zero is none. Layers alone, as NetAdapt measures them (Yang et al., ECCV 2018,
arXiv:1804.03230), would tell less: a runtime fuses them with their neighbours, and keeps int8 between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from onnx import ModelProto
from torch import nn

from stages.base import Signature
from stages.data import Splits
from stages.export import DEFAULT_OPSET
from stages.network import parameters
from stages.structure.anatomy import Anatomy, Block, Shape, Strand
from stages.structure.derived import Derived
from stages.structure.mockup import Precision, as_int8, folded, mockup, whole
from stages.structure.races import FINE, Races
from stages.structure.surgery import operate
from stages.structure.table import Costs, Saving
from targets.budget import METRICS, Measurement
from targets.devices import Device
from targets.errors import StageError
from targets.target import Target

__all__ = ["StructureBench", "levels"]

SHARES = (0.25, 0.5, 0.75)  # of a strand's channels

_EXAMPLES = 8
_COARSE = 2 * FINE  # for levels between two that are known well
_RIVALS = 2  # graphs beside a structure in a check, with parts in float that may not pay in int8

Unit = TypeVar("Unit", Block, Strand)
Level = tuple[str, int]  # a kind of strand, and how many channels stay
Key = TypeVar("Key", str, Level)


def levels(strand: Strand, multiple: int = 1) -> tuple[int, ...]:
    """Numbers of channels that a strand is measured at, narrow to wide; none where it cannot be narrower.

    Args:
        multiple: the target's `channel_multiple`; they are rounded up to it, and to the strand's unit.
    """
    step = math.lcm(multiple, strand.unit)
    found = {step * math.ceil(share * strand.channels / step) for share in SHARES}
    return tuple(sorted(width for width in found if width < strand.channels))


def _silent(_: str) -> None: ...


def _still(_fraction: float, _what: str) -> None: ...


@dataclass
class StructureBench:
    """Measures structures of one network on one target, in the precision that will ship.

    Attributes:
        module: the uncut network, trained or not, in eval mode.
        precision: what will ship. `costs` turns it to float where int8 makes the whole network slower.
        scratch: a folder that outlives a kill; nothing that was measured is measured again.
        opset: of the export, if the recipe sets one.
        device: instead of the target's own.
    """

    module: nn.Module
    signature: Signature
    anatomy: Anatomy
    data: Splits
    target: Target
    precision: Precision
    scratch: Path
    say: Callable[[str], None] = _silent
    progress: Callable[[float, str], None] = _still
    opset: int | None = None
    device: Device | None = None

    def costs(self) -> Costs:
        """The table of costs. A kind of unit that cannot be exported cut is left out, and so saves nothing.

        Raises:
            StageError: the whole network or its smallest structure cannot be exported.
            DeviceError: the device did not answer, or its runtime refused a graph.
        """
        if why := self._races.strange:
            self.say(f"{why}: what structures cost is an estimate")
        whole, smallest = self._ends()
        ms = whole["latency_p50_ms"]
        blocks, strands = _by_kind(self.anatomy.blocks), _by_kind(self.anatomy.strands)
        gone = {kind: Shape(frozenset(block.name for block in alike)) for kind, alike in blocks.items()}
        removed = self._savings({kind: partial(self._exported, shape) for kind, shape in gone.items()}, 0.2)
        narrowed = self._narrowed(strands)
        return Costs(
            whole,
            smallest,
            {kind: _each(saving, len(blocks[kind]), ms) for kind, saving in removed.items()},
            {
                kind: {n: _each(s, len(alike), ms) for (of, n), s in narrowed.items() if of == kind}
                for kind, alike in strands.items()
                if any(of == kind for of, _ in narrowed)
            },
        )

    def check(self, shape: Shape, costs: Costs, *, timed: bool = True) -> Saving:
        """What one structure takes: its size, and its median latency in milliseconds: raced with the whole network, and
        told in terms of what that took when the table was made.

        Args:
            timed: whether its latency is wanted.

        Raises:
            StageError: the structure cannot be exported.
            DeviceError: the device did not answer, or its runtime refused a graph.
        """
        if not self.anatomy.surgery(shape):
            found = {"size_mb": costs.whole["size_mb"], "latency_p50_ms": costs.whole["latency_p50_ms"]}
            return found if timed else {"size_mb": found["size_mb"]}
        model = self._exported(shape)
        made = {"structure": self._shipped(model)}
        if not timed:
            return {"size_mb": made["structure"].ByteSize() / 1e6}
        made |= self._paying(model, made["structure"])
        ratios = self._races.speedups(self._whole, made)
        best = max(made, key=lambda name: ratios[name].value)
        return {
            "size_mb": made[best].ByteSize() / 1e6,
            "latency_p50_ms": costs.whole["latency_p50_ms"] / ratios[best].value,
        }

    def _paying(self, model: ModelProto, int8: ModelProto) -> dict[str, ModelProto]:
        """The int8 graph with what seems not to pay in float, as `stages.int8.pays` will try it."""
        if not (self.precision.int8 and self.precision.pays):
            return {}
        runs = self._races.slower(folded(model), int8)[:_RIVALS]
        sets = [frozenset().union(*runs[: number + 1]) for number in range(len(runs))]
        examples, rules = self._races.examples, self.target.int8
        return {
            f"{number} in float": as_int8(model, examples, rules, self.precision.exclude, floats)
            for number, floats in enumerate(sets, 1)
        }

    @cached_property
    def _races(self) -> Races:
        examples = self.data.train.inputs(slice(0, _EXAMPLES))
        return Races(self.target, examples, self.scratch / "measured", self.say, self.device)

    @cached_property
    def _uncut(self) -> Derived:
        """The whole network, exported."""
        return whole(self.module, self.signature, self._races.examples, self._opset)

    @property
    def _float(self) -> ModelProto:
        """The whole network."""
        return self._fitting(self._uncut.model)

    @property
    def _whole(self) -> ModelProto:
        """The whole network as it would ship."""
        return self._int8 if self.precision.int8 else self._float

    @cached_property
    def _int8(self) -> ModelProto:
        return self._shipped(self._float)

    def _exported(self, shape: Shape) -> ModelProto:
        surgery, examples = self.anatomy.surgery(shape), self._races.examples
        model = self._uncut.cut(surgery, examples)
        if model is None:
            model = mockup(self.module, self.signature, surgery, examples, self._opset)
        return self._fitting(model)

    @property
    def _opset(self) -> int:
        return self.opset or min(DEFAULT_OPSET, self.target.opset)

    def _fitting(self, model: ModelProto) -> ModelProto:
        model.ir_version = min(model.ir_version, self.target.ir_version)
        return model

    def _shipped(self, model: ModelProto) -> ModelProto:
        if not self.precision.int8:
            return model
        return as_int8(model, self._races.examples, self.target.int8, self.precision.exclude)

    def _levels(self, strand: Strand) -> tuple[int, ...]:
        return levels(strand, self.target.channel_multiple)

    def _ends(self) -> tuple[dict[str, float], dict[str, float]]:
        """What the whole network and the smallest structure cost."""
        self.progress(0.0, "exporting the whole network and its smallest structure")
        least = {strand.name: found[0] for strand in self.anatomy.strands if (found := self._levels(strand))}
        try:
            ends = [self._exported(shape) for shape in self.anatomy.smallest(least)]
        except StageError as error:
            raise StageError(f"the smallest structure of the network cannot be exported: {error}") from error
        self.progress(0.1, "measuring them")
        if self.precision.int8:
            rows = self._in_full([self._shipped(model) for model in ends], {"float": self._float})
            pace = rows[0].get("speedup_p50")
            if not self.precision.pays or pace is None or pace.high >= 1:
                return _values(rows[0]), _best(rows[1:])
            self.say(f"int8 does not pay on the whole network ({pace.value:.2f} times the float's speed): float it is")
            self.precision = replace(self.precision, int8=False)
        rows = self._in_full(ends, {})
        return _values(rows[0]), _best(rows[1:])

    def _in_full(self, ends: Sequence[ModelProto], more: Mapping[str, ModelProto]) -> list[dict[str, Measurement]]:
        """The whole network's row, and one of each smallest structure; speedups are over `more`, or else the whole."""
        names = ["smallest", *(f"smallest {number}" for number in range(2, len(ends) + 1))]
        models = {"whole": self._whole, **dict(zip(names, ends, strict=True)), **more}
        rows = self._races.in_full(models, next(iter(more), "whole"))
        return [rows[name] for name in ("whole", *names)]

    def _narrowed(self, strands: Mapping[str, Sequence[Strand]]) -> dict[Level, Saving]:
        """What all strands of a kind save together at each level. Where the narrowest saves no time, the others save
        none either, and size goes with the number of parameters."""
        widths = {kind: at for kind, alike in strands.items() if (at := self._levels(alike[0]))}
        shapes = {
            (kind, n): Shape(widths={strand.name: n for strand in strands[kind]})
            for kind, at in widths.items()
            for n in at
        }
        least = {kind: (kind, at[0]) for kind, at in widths.items()}
        graphs = {at: partial(self._exported, shape) for at, shape in shapes.items()}
        found = self._savings({at: graphs[at] for at in least.values()}, 0.4)
        others = [at for at in shapes if at not in found and least[at[0]] in found]
        idle = [at for at in others if not found[least[at[0]]]["latency_p50_ms"]]
        found |= self._savings({at: graphs[at] for at in others if at not in idle}, 0.7, _COARSE)
        for level in idle:
            narrow = least[level[0]]
            lighter = self._cut_away(shapes[level]) / self._cut_away(shapes[narrow])
            found[level] = {"latency_p50_ms": 0.0, "size_mb": lighter * found[narrow]["size_mb"]}
        return dict(sorted(found.items()))

    def _savings(
        self, graphs: Mapping[Key, Callable[[], ModelProto]], done: float, fine: float = FINE
    ) -> dict[Key, Saving]:
        """Of each structure: the share of the whole network's median latency that it saves, and megabytes.

        Args:
            graphs: what makes each float graph.
            done: the share of all work that lies behind.
            fine: see `Races.speedups`.
        """
        models: dict[str, ModelProto] = {}
        keys: dict[str, Key] = {}
        for number, (key, make) in enumerate(graphs.items(), 1):
            self.progress(done + 0.15 * number / len(graphs), f"exporting structure {number} of {len(graphs)}")
            name = f"without {key}" if isinstance(key, str) else f"{key[0]} at {key[1]}"
            try:
                models[name], keys[name] = self._shipped(make()), key
            except StageError as error:
                self.say(f"a structure is left out: {error}")
        self.progress(done + 0.15, f"racing {len(models)} structures")
        whole = self._whole
        found: dict[Key, Saving] = {}
        for name, ratio in self._races.speedups(whole, models, fine).items():
            share = 0.0 if ratio.low <= 1 <= ratio.high else 1 - 1 / ratio.value
            size = (whole.ByteSize() - models[name].ByteSize()) / 1e6
            found[keys[name]] = {"latency_p50_ms": share, "size_mb": size}
        return found

    def _cut_away(self, shape: Shape) -> int:
        """How many parameters a structure lacks."""
        return parameters(self.module) - parameters(operate(deepcopy(self.module), self.anatomy.surgery(shape)))


def _by_kind(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.kind, []).append(unit)
    return found


def _each(saving: Saving, count: int, whole_ms: float) -> Saving:
    """What one of so many units saves."""
    return {"latency_p50_ms": saving["latency_p50_ms"] * whole_ms / count, "size_mb": saving["size_mb"] / count}


def _best(rows: Sequence[Mapping[str, Measurement]]) -> dict[str, float]:
    """The closest that can be reached, by metric: no one structure need have them all."""
    found = [_values(row) for row in rows]
    return {
        name: (min if METRICS[name] == "at most" else max)(row[name] for row in found if name in row)
        for name in found[0]
    }


def _values(row: Mapping[str, Measurement]) -> dict[str, float]:
    """What is predicted: the middle of each interval. Its width is what a prune's `aim` leaves room for."""
    return {name: measured.value for name, measured in row.items()}
