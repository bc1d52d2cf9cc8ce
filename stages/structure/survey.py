"""Before anything is trained: what may go from a network, and what its structures cost on a target."""

from __future__ import annotations

import json

from torch import nn

from stages.base import Context, Origin, Signature, Step
from stages.data import Splits
from stages.network import construct
from stages.settings import CostsConfig
from stages.structure.anatomy import Anatomy, dissect
from stages.structure.costs import StructureBench
from stages.structure.mockup import Precision
from stages.structure.trial import examples
from stages.teacher import check_fit

__all__ = ["dissected", "survey"]


def dissected(origin: Origin, config: CostsConfig, data: Splits, multiple: int, seed: int) -> tuple[nn.Module, Anatomy]:
    """The network with fresh weights, and what may go from it.

    Args:
        multiple: the target's `channel_multiple`.

    Raises:
        InputError: the network cannot be built, or does not fit the data.
        StageError: it cannot be traced.
    """
    module = construct(origin, seed)
    check_fit(module, data)
    return module, dissect(module, examples(data), multiple, config.exclude)


def survey(origin: Origin, config: CostsConfig, context: Context) -> Step:
    """Writes `costs.json` into `context.out`: the table, in what precision it holds, and how many units there are.

    Raises:
        InputError: the network cannot be built, or does not fit the data.
        StageError: it cannot be traced or exported.
        DeviceError: the device did not answer, or its runtime refused a graph.
    """
    assert context.target is not None
    data = context.data
    context.progress(0.0, "looking for what may go")
    module, anatomy = dissected(origin, config, data, context.target.channel_multiple, context.seed)
    bench = StructureBench(
        module,
        Signature(data.input_shape, len(data.classes)),
        anatomy,
        data,
        context.target,
        Precision(config.int8, config.float_nodes, config.pays),
        context.scratch,
        context.say,
        context.progress,
        config.opset,
    )
    costs = bench.costs()
    found = {
        **costs.to_json(),
        "precision": {"int8": bench.precision.int8, "exclude": list(config.float_nodes), "pays": config.pays},
        "opset": config.opset,
        "units": {"blocks": len(anatomy.blocks), "strands": len(anatomy.strands)},
        "refused": dict(anatomy.refused),
    }
    (context.out / "costs.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    metrics = {f"{name}_{metric}": value for name in ("whole", "smallest") for metric, value in found[name].items()}
    notes = [f"{len(anatomy.blocks)} blocks and {len(anatomy.strands)} groups of channels may go"]
    notes += [f"{name} stays whole: {why}" for name, why in anatomy.refused.items()]
    return Step("costs", notes=tuple(notes), metrics=metrics)
