"""Trials of a prune to a budget, as a run drives them."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import write_tiny

from pipeline.fitting import Fitting
from pipeline.plan import plan
from pipeline.recipe import load
from targets.budget import Measurement

RECIPE = """\
version: 1
name: budgeted
data: {source: tiny.npz, mean: [0.5], std: [0.25], validation: 0.3}
model: {source: "stages.testing:tiny_residual", args: {classes: 4}, train: {epochs: 2}}
stages:
  - prune: {to: budget, trials: TRIALS}
  - export: {}
targets:
  - {use: quick.yaml, budget: {size_mb: 0.01}}
"""


@pytest.fixture
def runner(tmp_path, request):
    """Everything is planned and counts as computed; a further step would break it."""
    recipe, _ = load(write_tiny(tmp_path, RECIPE.replace("TRIALS", str(getattr(request, "param", 3)))))
    told = []
    return SimpleNamespace(
        recipe=recipe,
        base=tmp_path,
        plan=plan(recipe, tmp_path),
        done=[],
        entry=lambda key: SimpleNamespace(values={"changed": True}),
        note=lambda title, text: told.append((title, text)),
        told=told,
    )


def _found(size_mb):
    row = asdict(Measurement("size_mb", size_mb, size_mb, size_mb, 1, "file size"))
    return {"models": {"fit 1": {"size_mb": row}}}


@pytest.mark.parametrize("runner", [1], indirect=True)
def test_why_there_is_no_further_trial_is_told_once(runner):
    fitting, goal = Fitting(runner), runner.plan.goal("quick")
    for _ in range(2):  # as while another branch goes on
        assert not fitting.again(goal, _found(0.02))
    why = "200% of the budget spent: more has to go, but prune.trials (1) are used up"
    assert fitting.told == {"quick": {"fit 1": why}}
    assert runner.told == [("fit 1", why)]


def test_data_that_changed_meanwhile_get_no_trial_beside_older_ones(runner, tmp_path):
    with np.load(tmp_path / "tiny.npz") as arrays:
        changed = dict(arrays)
    changed["x_train"][0, 0, 0, 0] += 1
    np.savez(tmp_path / "tiny.npz", **changed)
    fitting = Fitting(runner)
    assert not fitting.again(runner.plan.goal("quick"), _found(0.02))
    assert "code or data changed meanwhile" in fitting.told["quick"]["fit 1"]
