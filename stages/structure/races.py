"""Graphs of structures on a target: measured in turns, and never twice.

What was measured is kept in a folder, by the digests of the graphs and all that times depend on: a killed step goes on
without repeating any.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from onnx import ModelProto

from stages.graph import Floats
from stages.int8.slower import slower_nodes, written
from targets.budget import METRICS, SLOW, Measurement
from targets.devices import Device
from targets.energy import energy_measurement
from targets.files import write_atomically
from targets.measure import connect, measure, race, samples_for
from targets.samples import Measured, measurements
from targets.statistics import Interval, paired_ratio
from targets.target import MEASURED_BY, Meter, Target, facts, unlike

__all__ = ["FINE", "Races"]

FINE = 0.03

_METER = Meter(samples=200, blocks=10, max_seconds=2, warmup_s=0.1, energy_s=0)
_TOGETHER = 6  # graphs in one race beside the baseline: they all lie in memory


def _silent(_: str) -> None: ...


@dataclass(frozen=True)
class Races:
    """Where structures are measured.

    Attributes:
        examples: (k, *input shape), real inputs.
        folder: outlives a kill.
        given: a device instead of the target's own.
    """

    target: Target
    examples: Floats
    folder: Path
    say: Callable[[str], None] = _silent
    given: Device | None = field(default=None)

    @cached_property
    def device(self) -> Device:
        """The one that measures."""
        return connect(self.target) if self.given is None else self.given

    @property
    def strange(self) -> str:
        """Why the device cannot speak for the target; empty if it can."""
        identity = self.device.identity()
        return unlike(self.target, identity["machine"], identity["flags"])

    def in_full(self, models: Mapping[str, ModelProto], baseline: str) -> dict[str, dict[str, Measurement]]:
        """Latencies by the target's own meter, and the size; and all else that a budget can limit, if it does. A
        percentile that the samples do not support is left out, unless it is limited: then enough of them are taken.

        Args:
            baseline: the name of the model that speedups refer to.

        Raises:
            DeviceError: the device did not answer, or its runtime refused a graph.
        """
        limits, meter = self.target.budget, self.target.meter
        energy_s = meter.energy_s if limits.energy_mj is not None else 0.0
        meter = meter.model_copy(update={"samples": samples_for(self.target), "energy_s": energy_s})
        target = self.target.model_copy(update={"meter": meter})
        slow = any(getattr(limits, metric) is not None for metric in SLOW)
        run = partial(measure if slow else race, target, sample=self.examples, say=self.say, device=self.device)
        found = self._kept(target, models, lambda paths: run(models=paths))
        return {name: _row(found, name, baseline, target) for name in models}

    def speedups(
        self, baseline: ModelProto, models: Mapping[str, ModelProto], fine: float = FINE
    ) -> dict[str, Interval]:
        """How many times faster each graph is than the baseline, raced for as long as that is not known well, within a
        bound. In two processes at least: where memory happens to lie changes times too (see `stages.int8.pays`).

        Args:
            fine: width of the interval of a saving, as a share of the baseline's time, that need not be narrower.

        Raises:
            DeviceError: the device did not answer, or its runtime refused a graph.
        """
        target, names = self._short, list(models)
        found: dict[str, Interval] = {}
        for start in range(0, len(names), _TOGETHER):
            some = names[start : start + _TOGETHER]

            def undecided(seen: Measured, some: list[str] = some) -> bool:
                once = len(seen.models["whole"].latency_ms) <= _METER.blocks
                return once or any(_wide(_speedup(seen, name), fine) for name in some)

            def run(paths: Mapping[str, Path], ends: Callable[[Measured], bool] = undecided) -> Measured:
                return race(target, paths, self.examples, say=self.say, device=self.device, undecided=ends)

            raced = self._kept(target, {"whole": baseline, **{name: models[name] for name in some}}, run)
            found |= {name: _speedup(raced, name) for name in some}
        return found

    def slower(self, float_model: ModelProto, int8_model: ModelProto) -> list[frozenset[str]]:
        """Runs of nodes that seem to be slower in int8 than in float, the dearest first; see `slower_nodes`.

        Raises:
            DeviceError: the device did not answer, or its runtime refused a graph.
        """
        target, graphs = self._short, {"float": float_model, "int8": int8_model}

        def runs() -> Any:
            found = slower_nodes(float_model, int8_model, target, self.examples, self.device, self.say)
            return [sorted(nodes) for nodes, _ in found]

        return [frozenset(nodes) for nodes in self._remembered(target, graphs, runs, "slower")]

    @property
    def _short(self) -> Target:
        """The target with a meter for races."""
        return self.target.model_copy(update={"meter": _METER})

    def _kept(
        self, target: Target, models: Mapping[str, ModelProto], run: Callable[[Mapping[str, Path]], Measured]
    ) -> Measured:
        """What a run measures, or what one did measure of the same graphs."""

        def measured() -> Any:
            with written(models) as paths:
                return run(paths).to_json()

        return Measured.from_json(self._remembered(target, models, measured))

    def _remembered(
        self, target: Target, models: Mapping[str, ModelProto], run: Callable[[], Any], what: str = "measured"
    ) -> Any:
        """JSON values that a run gives, or that one gave of the same graphs, by the same meter, on the same machine."""
        graphs = [(name, model.SerializeToString(deterministic=True)) for name, model in models.items()]
        asked = {
            "what": what,
            "models": [(name, hashlib.sha256(data).hexdigest()) for name, data in graphs],
            "inputs": [list(self.examples.shape), hashlib.sha256(self.examples.tobytes()).hexdigest()],
            "target": facts(target, MEASURED_BY),
            "limits": [metric for metric in SLOW if getattr(target.budget, metric) is not None],
            "machine": self.device.identity(),
        }
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        file = self.folder / f"{key}.json"
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            if known["asked"] == json.loads(json.dumps(asked)):
                return known["found"]
        except (OSError, ValueError, KeyError, TypeError):  # nothing there, or spoiled
            pass
        found = run()
        write_atomically(file, json.dumps({"asked": asked, "found": found}).encode())
        return found


def _row(found: Measured, name: str, baseline: str, target: Target) -> dict[str, Measurement]:
    """Measurements of one model that a budget can limit."""
    row = measurements(found, name, baseline, target.meter.confidence)
    if (energy := found.models[name].energy) is not None:
        counted = energy_measurement(energy, target.energy.power_w, target.meter.confidence)
        row |= {} if counted is None else {"energy_mj": counted}
    return {metric: measured for metric, measured in row.items() if metric in METRICS}


def _speedup(found: Measured, name: str) -> Interval:
    """Without blocks enough to tell, anything is possible."""
    ratio = paired_ratio(found.models["whole"].latency_ms, found.models[name].latency_ms, _METER.confidence)
    return ratio or Interval(1.0, 0.0, math.inf)


def _wide(ratio: Interval, fine: float) -> bool:
    """Whether the saving is still known too roughly."""
    return ratio.low <= 0 or 1 / ratio.low - 1 / ratio.high > fine
