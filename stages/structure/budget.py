"""A network pruned to a budget: blocks and channels leave until the target's limits hold.

what may go (`anatomy`), what it costs on the target (`table`), what it is worth (`worth`)
the most important structure that fits, measured until prediction and measurement agree (`fit`)
the cut is tried as a whole, made, written, and built anew: equal to the last bit
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from stages.base import Candidate, Context, Step
from stages.network import build, channels, macs, parameters, prove_rebuilt, save_weights
from stages.settings import PruneConfig
from stages.structure.anatomy import Anatomy, Shape, dissect
from stages.structure.choice import out_of_reach
from stages.structure.costs import StructureBench
from stages.structure.fit import Bench, Fit
from stages.structure.mockup import Precision
from stages.structure.surgery import operate
from stages.structure.table import Costs
from stages.structure.trial import examples, fault
from stages.teacher import measured
from targets.budget import Budget
from targets.errors import InputError, StageError

__all__ = ["to_budget"]

_SHOWN = 3  # units that stay whole, in the notes


def to_budget(candidate: Candidate, config: PruneConfig, context: Context, bench: Bench | None = None) -> Candidate:
    """Removes the blocks and channels that the network can best spare, until `config.aim` of the budget is spent.

    The step's metrics are those of `prune`, `blocks_removed`, `predicted_<metric>` for every limit, for latency and for
    size, and `checked_latency_p50_ms` where latency was measured.

    Args:
        bench: measures structures, instead of the context's target.

    Raises:
        InputError: no structure of the network can hold the budget: says the closest figures that can be reached. Or a
            pattern in `exclude` matches nothing.
        StageError: the budget limits nothing that pruning changes, or the network cannot be cut.
        DeviceError: the target could not measure a structure.
    """
    limits = (context.target.budget if context.target else Budget()).costs
    if not limits:
        raise StageError(
            "prune: {to: budget} needs a limit on latency, size, memory, energy, throughput or speedup in the target's "
            "budget; without one use keep or speedup"
        )
    assert context.target is not None
    module, inputs = build(candidate), examples(context.data)
    context.progress(0.0, "pruning to the budget: looking for what may go")
    anatomy = dissect(module, inputs, context.target.channel_multiple, config.exclude)
    found = json.loads((context.costs / "costs.json").read_text(encoding="utf-8")) if context.costs else {}
    bench = _bench(candidate, module, anatomy, found, context) if bench is None else bench
    # The table was made of the network as its source builds it.
    costs = Costs.from_json(found) if found and not candidate.surgery else bench.costs()
    if faults := out_of_reach(costs, limits, len(anatomy.blocks), len(anatomy.strands)):  # before anything is appraised
        raise InputError([replace(fault, what=f"{fault.key} {fault.what}", key="to") for fault in faults])
    fit = Fit(module, anatomy, costs, limits, config, context, bench)
    shape = fit.found()
    surgery = anatomy.surgery(shape, fit.worst)
    if why := fault(module, surgery, inputs):
        raise StageError(f"prune to budget: the chosen structure does not hold together: {why}")
    cut = operate(build(candidate), surgery)
    before, shape_in = build(candidate), candidate.signature.input_shape
    metrics = {
        **measured(cut, context.data),
        "parameters_before": parameters(before),
        "macs_before": macs(before, shape_in),
        "channels_kept": channels(cut) / channels(before),
        "blocks_removed": len(shape.gone),
        **fit.figures(shape),
    }
    notes = (*fit.notes, *_changes(anatomy, shape), *_whole(anatomy))
    step = Step("prune", bool(surgery), notes, metrics)
    weights = context.out / "weights.safetensors"
    result = candidate.then(step, surgery=(*candidate.surgery, *surgery), weights=weights)
    save_weights(cut, weights)
    prove_rebuilt(cut, result, inputs)
    return result


def _bench(
    candidate: Candidate, module: nn.Module, anatomy: Anatomy, found: Mapping[str, Any], context: Context
) -> StructureBench:
    assert context.target is not None
    ships = found.get("precision", {})
    precision = Precision(**{**ships, "exclude": tuple(ships.get("exclude", ()))})
    return StructureBench(
        module,
        candidate.signature,
        anatomy,
        context.data,
        context.target,
        precision,
        context.scratch,
        context.say,
        context.progress,
        found.get("opset"),
    )


def _changes(anatomy: Anatomy, shape: Shape) -> Iterator[str]:
    if shape.gone:
        gone = [block.name for block in anatomy.blocks if block.name in shape.gone]
        yield f"removed {len(gone)} of {len(anatomy.blocks)} blocks: {', '.join(gone)}"
    narrow = [s for s in anatomy.strands if s.name in shape.widths]
    if narrow:
        yield "narrowed " + ", ".join(f"{s.name} from {s.channels} to {shape.widths[s.name]}" for s in narrow)


def _whole(anatomy: Anatomy) -> Iterator[str]:
    """What could not go, and why: the first few."""
    for name, why in [*anatomy.refused.items()][:_SHOWN]:
        yield f"{name} stays whole: {why}"
    if (more := len(anatomy.refused) - _SHOWN) > 0:
        yield f"and {more} more stay whole"
