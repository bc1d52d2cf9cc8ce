"""The plan: what is shared, what a change touches, and in what order steps stand."""

import subprocess
import sys

import numpy as np
import pytest
from tiny_run import TINY, write_tiny

from pipeline.plan import plan
from pipeline.recipe import load
from targets.errors import InputError


def _plan(folder, text=TINY, **sets):
    path = write_tiny(folder, text)
    recipe, _ = load(path, sets)
    return plan(recipe, folder)


def _keys(laid):
    return {step.title: step.key for step in laid.steps}


def test_parents_come_first_and_each_student_has_a_branch(tmp_path):
    laid = _plan(tmp_path)
    seen = set()
    for step in laid.steps:
        assert set(step.parents) <= seen
        seen.add(step.key)
    assert list(laid.goals[0].candidates) == ["keep 1", "keep 0.5"]
    titles = [step.title for step in laid.lineage(laid.goals[0].candidates["keep 0.5"])]
    assert titles == [
        "teacher",
        "distill keep 0.5",
        "prune keep 0.5",
        "distill keep 0.5 (2)",
        "export keep 0.5",
        "quantize keep 0.5",
    ]


def test_export_moves_in_front_of_quantize_with_its_own_settings(tmp_path):
    laid = _plan(tmp_path)
    export = next(step for step in laid.steps if step.title == "export keep 1")
    assert export.config.samples == 8


def test_the_order_quantize_export_or_export_quantize_is_the_same_plan(tmp_path):
    quantize, export = "  - quantize: {samples: 32, pays: false, qat: null}\n", "  - export: {samples: 8}\n"
    swapped = TINY.replace(quantize + export, export + quantize)
    assert swapped != TINY
    assert _keys(_plan(tmp_path)) == _keys(_plan(tmp_path, swapped))


@pytest.mark.parametrize(
    ("key", "value", "first_changed"),
    [
        ("seed", "4", "teacher"),
        ("model.train.epochs", "9", "teacher"),
        ("stages.1.prune.keep", "0.5", "prune keep 1"),
        ("stages.3.quantize.samples", "16", "quantize keep 1"),
        ("stages.4.export.samples", "9", "export teacher"),
        ("targets.0.budget.size_mb", "2.0", None),
    ],
)
def test_a_change_touches_only_what_depends_on_it(tmp_path, key, value, first_changed):
    before, after = _plan(tmp_path), _plan(tmp_path, **{key: value})
    changed = [title for title, k in _keys(after).items() if _keys(before).get(title) != k]
    assert (changed[0] if changed else None) == first_changed
    for step in after.steps:
        parents = [after.title(key) for key in step.parents]
        assert step.title in changed or not set(parents) & set(changed)


def test_a_change_of_the_data_changes_every_key(tmp_path):
    before = _keys(_plan(tmp_path))
    with np.load(tmp_path / "tiny.npz") as arrays:
        changed = dict(arrays)
    recipe, _ = load(tmp_path / "tiny.yaml")
    changed["x_train"][0, 0, 0, 0] += 1
    np.savez(tmp_path / "tiny.npz", **changed)
    after = _keys(plan(recipe, tmp_path))
    assert not set(before.values()) & set(after.values())


def test_targets_share_what_does_not_look_at_their_difference(tmp_path):
    (tmp_path / "eights.yaml").write_text("name: eights\nextends: local\nchannel_multiple: 8\n")
    (tmp_path / "slow.yaml").write_text(
        "name: slow\nextends: local\nbudget: {accuracy_drop_points: 15.0, size_mb: 9}\n"
    )
    two = TINY + "  - use: eights.yaml\n  - use: slow.yaml\n"
    laid = _plan(tmp_path, two)
    by_target = {goal.target.name: goal.candidates for goal in laid.goals}
    assert by_target["quick"] == by_target["slow"]
    assert by_target["quick"]["keep 1"] != by_target["eights"]["keep 1"]
    titles = [step.title for step in laid.steps]
    assert titles.count("teacher") == 1
    assert titles.count("distill keep 0.5") == 1
    assert titles.count("export teacher") == 1


def test_planning_wakes_no_torch(tmp_path):
    path = write_tiny(tmp_path)
    code = (
        "import sys; from pathlib import Path; from pipeline.recipe import load; from pipeline.plan import plan\n"
        f"recipe, _ = load(Path({str(path)!r})); plan(recipe, Path({str(tmp_path)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


BUDGETED = """\
version: 1
name: budgeted
data: {source: tiny.npz, mean: [0.5], std: [0.25], validation: 0.3}
model: {source: "stages.testing:tiny_residual", args: {classes: 4}, train: {epochs: 2}}
stages:
  - prune: {to: budget}
  - distill: {epochs: 2}
  - quantize: {}
  - export: {}
targets:
  - {use: quick.yaml, budget: {size_mb: 0.01}}
  - {use: quick.yaml, name: roomy, budget: {size_mb: 0.02}}
"""


def test_costs_come_first_and_one_more_trial_is_one_more_aim(tmp_path):
    path = write_tiny(tmp_path, BUDGETED)
    recipe, _ = load(path)
    once = plan(recipe, tmp_path)
    again = plan(recipe, tmp_path, {("quick", "teacher"): (0.7,)})
    assert [step.kind for step in once.steps[:2]] == ["costs", "teacher"]
    assert {step.key for step in once.steps} < {step.key for step in again.steps}
    assert again.goal("quick").trials == {"teacher": {"fit 1": 0.85, "fit 2": 0.7}}
    assert list(again.goal("quick").candidates) == ["fit 1", "fit 2"]
    assert list(again.goal("roomy").candidates) == ["fit 1"]
    lineage = again.lineage(again.goal("quick").candidates["fit 2"])
    assert [step.stage for step in lineage] == ["teacher", "prune", "distill", "export", "quantize"]
    assert lineage[1].config.aim == 0.7
    assert lineage[1].at == ("stages", 0, "prune")


def test_costs_depend_on_the_network_and_the_target_alone(tmp_path):
    def costs(**sets):
        recipe, _ = load(tmp_path / "tiny.yaml", sets)
        return [step.key for step in plan(recipe, tmp_path).steps if step.kind == "costs"]

    write_tiny(tmp_path, BUDGETED)
    before = costs()
    assert len(before) == 1
    assert before == costs(
        **{"model.train.epochs": "3", "targets.0.budget.size_mb": "0.1", "stages.0.prune.aim": "0.5"}
    )
    assert before != costs(**{"model.args.width": "16"})
    assert before != costs(stages="[prune: {to: budget}, export: {}]")


def test_more_trials_or_minutes_keep_what_was_computed(tmp_path):
    write_tiny(tmp_path, BUDGETED)
    few, many = (
        plan(load(tmp_path / "tiny.yaml", sets)[0], tmp_path)
        for sets in ({}, {"stages.0.prune.trials": "9", "stages.0.prune.minutes": "900"})
    )
    assert few.steps == many.steps


def test_branches_of_all_targets_learn_together_and_later_trials_alone(tmp_path):
    path = write_tiny(
        tmp_path, BUDGETED.replace("epochs: 2}\n  - quantize", "epochs: 2, together: true}\n  - quantize")
    )
    recipe, _ = load(path)
    laid = plan(recipe, tmp_path, {("quick", "teacher"): (0.7,)})
    (family,) = [step for step in laid.steps if step.kind == "family"]
    members = [step for step in laid.steps if step.kind == "member"]
    quick, roomy = (step.key for step in laid.steps if step.stage == "prune" and step.config.aim == 0.85)
    assert [step.parents for step in members] == [(quick, family.key), (roomy, family.key)]
    assert (family.parents[0], family.others) == (quick, (roomy,))
    assert [step.member for step in members] == [0, 1]
    assert roomy in [step.key for step in laid.lineage(laid.goal("roomy").candidates["fit 1"])]
    later = laid.lineage(laid.goal("quick").candidates["fit 2"])
    assert [step.kind for step in later] == ["teacher", "stage", "stage", "stage", "stage"]
    assert not later[2].config.together


def test_a_cascade_is_one_more_branch_of_two(tmp_path):
    text = TINY.replace("  - export: {samples: 8}\n", "  - export: {samples: 8}\n  - cascade: {}\n")
    laid = _plan(tmp_path, text)
    goal = laid.goals[0]
    assert list(goal.candidates) == ["keep 1", "keep 0.5", "cascade"]
    step = laid.step(goal.candidates["cascade"])
    assert set(step.parents) >= {goal.candidates["keep 1"], goal.candidates["keep 0.5"]}
    assert len(step.others) == 1


@pytest.mark.parametrize(
    ("settings", "small", "large"),
    [
        ("{}", "keep 1", "keep 0.5"),
        ("{small: keep 0.5}", "keep 0.5", "keep 1"),
        ("{large: keep 1}", "keep 0.5", "keep 1"),
        ("{small: keep 1}", "keep 1", "keep 0.5"),
    ],
)
def test_a_cascade_that_names_one_branch_joins_it_with_the_other(tmp_path, settings, small, large):
    text = TINY.replace("  - export: {samples: 8}\n", f"  - export: {{samples: 8}}\n  - cascade: {settings}\n")
    laid = _plan(tmp_path, text)
    goal = laid.goals[0]
    step = laid.step(goal.candidates["cascade"])
    assert (step.others, step.parents[0]) == ((goal.candidates[small],), goal.candidates[large])


def test_a_student_may_not_take_the_name_of_a_cascade(tmp_path):
    text = TINY.replace("  - export: {samples: 8}\n", "  - export: {samples: 8}\n  - cascade: {}\n")
    with pytest.raises(InputError, match="a student is called 'cascade'"):
        _plan(tmp_path, text.replace("{keep: 1.0}", "{keep: 1.0, name: cascade}"))
