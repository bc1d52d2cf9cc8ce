"""What structures of one network cost on one target, as a table: pure. How it is measured: `stages.structure.costs`.

A structure's cost is the whole network's less what its missing blocks and narrower strands save. Savings were measured
on whole graphs, one kind of unit at a time, and add up only about right: `Costs.corrected` takes in what a whole
structure was measured to cost (NetAdapt measures layers and adds them up: Yang et al., ECCV 2018, arXiv:1804.03230; so
does the latency table of HALP: Shen et al., NeurIPS 2022, arXiv:2110.10811).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stages.structure.anatomy import Anatomy, Shape

__all__ = ["Costs", "Saving"]

Saving = Mapping[str, float]
"""By column ("latency_p50_ms", "size_mb"): what one unit saves, below zero where a smaller unit costs more; or what a
whole structure takes."""


@dataclass(frozen=True)
class Costs:
    """Measured costs of the structures of one network.

    Attributes:
        whole: of the uncut network, by metric of `Budget`: "latency_p50_ms", "latency_p95_ms", "latency_p99_ms",
            "size_mb"; "peak_memory_mb", "throughput_per_s", "energy_mj" and "speedup_p50" where they could be measured.
        smallest: the same of the smallest structure.
        blocks: saving of one block, by its kind.
        strands: saving of one strand, by its kind and the number of channels that stay.
        factors: what predictions of latency and of size are multiplied by, since whole structures were measured.
    """

    whole: Mapping[str, float]
    smallest: Mapping[str, float]
    blocks: Mapping[str, Saving]
    strands: Mapping[str, Mapping[int, Saving]]
    factors: Saving = field(default_factory=dict)

    def widths(self, kind: str) -> tuple[int, ...]:
        """Numbers of channels that were measured for a kind of strand, wide to narrow."""
        return tuple(sorted(self.strands.get(kind, {}), reverse=True))

    def predict(self, anatomy: Anatomy, shape: Shape) -> dict[str, float]:
        """What a structure will cost, by metric of `Budget`; a metric that was not measured is left out.

        Latency and size come from the table. The other percentiles keep their ratio to the median, throughput and
        speedup go against it; memory and energy lie between the whole network's and the smallest structure's, memory as
        size does and energy as latency does.
        """
        saved = self._saved(anatomy, shape)
        p50 = max(self.whole["latency_p50_ms"] - saved["latency_p50_ms"], 1e-6) * self.factors.get(
            "latency_p50_ms", 1.0
        )
        size = max(self.whole["size_mb"] - saved["size_mb"], 1e-6) * self.factors.get("size_mb", 1.0)
        found = {"latency_p50_ms": p50, "size_mb": size}
        shares = {"peak_memory_mb": self._share("size_mb", size), "energy_mj": self._share("latency_p50_ms", p50)}
        for metric, value in self.whole.items():
            if metric.startswith("latency_"):
                found[metric] = value * p50 / self.whole["latency_p50_ms"]
            elif metric in ("throughput_per_s", "speedup_p50"):
                found[metric] = value * self.whole["latency_p50_ms"] / p50
            elif metric in shares and metric in self.smallest:
                found[metric] = self.smallest[metric] + shares[metric] * (value - self.smallest[metric])
        return found

    def corrected(self, anatomy: Anatomy, shape: Shape, found: Saving) -> Costs:
        """The same table, which predicts for this structure what was found.

        Args:
            found: by column, what the structure takes.
        """
        predicted = self.predict(anatomy, shape)
        changed = {name: self.factors.get(name, 1.0) * value / predicted[name] for name, value in found.items()}
        return replace(self, factors={**self.factors, **changed})

    def _share(self, metric: str, value: float) -> float:
        """Where a value lies between the smallest structure's (0) and the whole network's (1)."""
        reach = self.whole[metric] - self.smallest[metric]
        return (value - self.smallest[metric]) / reach if reach > 0 else 1.0

    def _saved(self, anatomy: Anatomy, shape: Shape) -> dict[str, float]:
        """By column. Units that share layers cannot save the same twice: a strand saves nothing in blocks that are
        gone, and in a layer whose other side is narrower already, less by as much. Layers of a strand count alike."""
        saved = {"latency_p50_ms": 0.0, "size_mb": 0.0}
        gone = [block for block in anatomy.blocks if block.name in shape.gone]
        for block in gone:
            for metric in saved:
                saved[metric] += self.blocks.get(block.kind, {}).get(metric, 0.0)
        narrowed: dict[str, float] = {}
        for strand in anatomy.strands:
            stay = shape.widths.get(strand.name, strand.channels)
            if stay == strand.channels or anatomy.held(strand, shape.gone):
                continue
            layers = dict.fromkeys(m.module for m in strand.group.members if m.kind in ("out", "in"))
            here = [name for name in layers if not any(block.holds(name) for block in gone)]
            left = sum(narrowed.get(name, 1.0) for name in here) / len(layers)
            for metric in saved:
                saved[metric] += left * self.strands.get(strand.kind, {}).get(stay, {}).get(metric, 0.0)
            narrowed |= {name: narrowed.get(name, 1.0) * stay / strand.channels for name in here}
        return saved

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        widths = {kind: {str(n): dict(s) for n, s in at.items()} for kind, at in self.strands.items()}
        blocks = {kind: dict(saving) for kind, saving in self.blocks.items()}
        whole, smallest = dict(self.whole), dict(self.smallest)
        return {
            "whole": whole,
            "smallest": smallest,
            "blocks": blocks,
            "strands": widths,
            "factors": dict(self.factors),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Costs:
        """What `to_json` gave."""
        strands = {kind: {int(n): saving for n, saving in at.items()} for kind, at in values["strands"].items()}
        return Costs(values["whole"], values["smallest"], values["blocks"], strands, values["factors"])
