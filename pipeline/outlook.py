"""What a prune to a budget has to work with, before anything is measured or trained: for `attar plan`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.code import importable
from pipeline.recipe import Recipe
from pipeline.report.words import plural
from pipeline.splits import load_data
from pipeline.steps import Plan, PlannedStep
from pipeline.store import Store
from stages.settings import CostsConfig

__all__ = ["outlook"]

_SHOWN = 12  # reasons


def outlook(recipe: Recipe, base: Path, laid: Plan, store: Store) -> Iterator[tuple[str, list[str]]]:
    """For each network that a prune works back on: what may go from it, and what stays whole, with the reason.

    Networks whose costs are stored are not built again.

    Raises:
        InputError: the data cannot be loaded, or the network not be built.
        StageError: the network cannot be traced.
    """
    steps = {(repr(step.origin), repr(step.config)): step for step in laid.steps if step.kind == "costs"}
    for step in steps.values():
        entry = store.find(step.key)
        found = _looked(recipe, base, step) if entry is None else json.loads(store.read(entry, "costs.json"))
        units, refused = found["units"], found["refused"]
        assert step.origin is not None
        blocks, groups = plural(units["blocks"], "block"), plural(units["strands"], "group")
        told = f"{step.origin.source}: {blocks} and {groups} of channels may go"
        reasons = [f"{name} stays whole: {why}" for name, why in refused.items()]
        if len(reasons) > _SHOWN:
            reasons = [*reasons[:_SHOWN], f"and {len(reasons) - _SHOWN} more"]
        yield told, reasons


def _looked(recipe: Recipe, base: Path, step: PlannedStep) -> Mapping[str, Mapping[str, Any]]:
    """The network, built and taken apart."""
    from stages.structure.survey import dissected  # wakes torch

    assert step.origin is not None
    assert step.target is not None
    assert isinstance(step.config, CostsConfig)
    data = load_data(recipe.data, base, recipe.seed)
    with importable(base):
        _, anatomy = dissected(step.origin, step.config, data, step.target.channel_multiple, recipe.seed)
    return {"units": {"blocks": len(anatomy.blocks), "strands": len(anatomy.strands)}, "refused": anatomy.refused}
