"""Budgets in, artifact out: a structure is found for each budget, or refused before anything is trained."""

import json
import signal
import time
from pathlib import Path

import pytest
from tiny_run import attar, attar_started, write_tiny

BUDGETED = """\
version: 1
name: budgeted
seed: 3
task: classification
data: {source: tiny.npz, mean: [0.5], std: [0.25], validation: 0.3}
model: {source: "stages.testing:tiny_residual", args: {classes: 4}, train: {epochs: 6, batch_size: 16}}
stages:
  - prune: {to: budget, samples: 64, steps: 2, trials: 2, exclude: [rest.2*, rest.3*]}
  - distill: {epochs: 4, batch_size: 16}
  - export: {samples: 8}
targets:
  - use: quick.yaml
    budget: {accuracy_drop_points: 60.0, size_mb: SIZE}
"""


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory):
    """A folder in which a budget was met, and the run's report."""
    folder = tmp_path_factory.mktemp("budgeted")
    write_tiny(folder, BUDGETED.replace("SIZE", "0.012"))
    done = attar("run", "tiny.yaml", "--json", cwd=folder)
    return folder, done, json.loads(done.stdout)


def test_costs_come_before_training_and_the_structure_is_what_was_predicted(budgeted):
    _, done, report = budgeted
    assert done.returncode == 0, done.stderr
    steps = [step["stage"] for step in report["steps"]]
    assert steps.index("costs") < steps.index("teacher") < steps.index("prune")
    (target,), costs = report["targets"], report["steps"][0]["metrics"]
    size = next(check for check in target["checks"] if check["metric"] == "size_mb")
    assert costs["smallest_size_mb"] < size["value"] <= 0.012 < costs["whole_size_mb"]
    assert target["predicted"]["size_mb"] == pytest.approx(size["value"], rel=0.1)


def test_the_report_says_prediction_and_measurement(budgeted):
    folder, done, _ = budgeted
    assert "Predicted before it was trained" in " ".join(done.stderr.split())
    assert "Predicted before it was trained" in (folder / "runs/budgeted/report.html").read_text()


def test_a_plan_says_what_may_go_and_what_stays_whole(budgeted):
    folder, _, _ = budgeted
    told = attar("plan", "tiny.yaml", cwd=folder).stdout
    assert "groups of channels may go" in told
    assert "7 steps: 7 stored" not in told.splitlines()[0]


@pytest.mark.slow
def test_a_second_budget_measures_no_structure_again(budgeted):
    folder, _, _ = budgeted
    again = attar("run", "tiny.yaml", "--json", "--set", "targets.0.budget.size_mb=0.014", cwd=folder)
    steps = {step["title"]: step["stored"] for step in json.loads(again.stdout)["steps"]}
    assert steps["costs on quick"]
    assert steps["teacher"]
    assert not steps["prune fit 1"]


def test_an_unreachable_budget_is_refused_before_training(budgeted):
    folder, _, report = budgeted
    known = set((folder / ".attar/store/steps").iterdir())
    sets = ("--set", "targets.0.budget.size_mb=0.0005", "--set", "model.train.epochs=7")
    done = attar("run", "tiny.yaml", "--out", "unreachable", *sets, cwd=folder)
    assert done.returncode == 2
    told = " ".join(done.stderr.split())
    closest = report["steps"][0]["metrics"]["smallest_size_mb"]
    assert "0.0005 is out of reach: the smallest structure was measured to take" in told
    assert f"size_mb {closest:.3g}" in told
    assert "targets[0].budget.size_mb" in told
    assert set((folder / ".attar/store/steps").iterdir()) == known
    assert not (folder / "unreachable").exists()


def test_two_budgets_share_the_teacher_and_the_costs(tmp_path):
    from pipeline.plan import plan
    from pipeline.recipe import load

    text = BUDGETED.replace("SIZE", "0.012") + "  - {use: quick.yaml, name: roomy, budget: {size_mb: 0.015}}\n"
    recipe, _ = load(write_tiny(tmp_path, text))
    titles = [step.title for step in plan(recipe, tmp_path).steps]
    assert titles.count("teacher") == 1
    assert [title for title in titles if title.startswith("costs")] == ["costs on quick"]
    assert [title for title in titles if title.startswith("prune")] == ["prune fit 1", "prune fit 1 (2)"]


NET = "source: 'stages.testing:tiny_residual'"
OWN = f"  - distill: {{students: [{{{NET}, name: one, args: {{width: 4}}}}, {{{NET}, name: two}}]}}"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("size_mb: SIZE", "fallback_nodes: 0", "works back from limits on costs, and this target has none"),
        ("size_mb: SIZE", "latency_p50_ms: 2, latency_p95_ms: 1", "2 is above latency_p95_ms 1"),
        ("  - prune:", "  - prune: {to: budget}\n  - prune:", "there is a prune to the budget already"),
        ("  - prune:", "  - distill: {students: [{keep: 0.5}]}\n  - prune:", "`keep` decides what stays"),
        ("  - prune:", "  - prune: {keep: 0.5}\n  - prune:", "stands before the prune to the budget"),
        ("16}\n  - export", "16, students: [{keep: 0.5}]}\n  - export", "already decided what stays of each branch"),
        ("16}\n  - export", "16, together: true, features: {rest: 1}}\n  - export", "cannot be matched in branches"),
        ("  - prune:", f"{OWN}\n  - distill: {{together: true}}\n  - prune:", "'one' and 'two' are different networks"),
        ("  - export: {samples: 8}", "  - export: {}\n  - cascade: {}", "a cascade joins two branches"),
        ("to: budget,", "to: budget, keep: 0.5,", "one of to, keep and speedup must be given"),
        ("to: budget,", "to: budget, importance: l2,", "weighs channels against blocks"),
    ],
)
def test_budgets_that_cannot_work_are_faults(tmp_path, old, new, told):
    write_tiny(tmp_path, BUDGETED.replace(old, new).replace("SIZE", "0.012"))
    done = attar("check", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_kill_in_the_search_repeats_no_measurement(tmp_path):
    write_tiny(tmp_path, BUDGETED.replace("SIZE", "0.012"))

    def measured():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / ".attar/store/scratch").rglob("*.json")}

    killed = attar_started("run", "tiny.yaml", cwd=tmp_path)
    until = time.monotonic() + 300
    while len(kept := measured()) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(kept) >= 2
    seen: dict[Path, int] = {}
    resumed = attar_started("run", "tiny.yaml", cwd=tmp_path)
    while resumed.poll() is None:
        seen |= measured()
        time.sleep(0.01)
    assert resumed.returncode == 0
    assert kept.items() <= seen.items()
    assert len(seen) > len(kept)


@pytest.mark.slow
def test_three_budgets_on_one_teacher_are_each_met_and_spent(tmp_path):
    """The shipped recipes, with limits that are shares of what the whole int8 network takes on this machine."""
    recipes = Path(__file__).parents[1] / "recipes"
    lift = ("--set", "targets.0.budget.latency_p95_ms=1000", "--set", "stages.1.distill.epochs=1")
    first = json.loads(attar("run", recipes / "digits_loose.yaml", "--json", *lift, cwd=tmp_path).stdout)
    whole = next(s["metrics"]["whole_latency_p95_ms"] for s in first["steps"] if s["stage"] == "costs")
    for name, share in (("tight", 0.46), ("middle", 0.64), ("loose", 0.85)):
        limit = float(f"{share * whole:.3g}")
        held = ("--set", f"targets.0.budget.latency_p95_ms={limit}")
        done = attar("run", recipes / f"digits_{name}.yaml", "--json", *held, cwd=tmp_path)
        report = json.loads(done.stdout)
        check = next(c for c in report["targets"][0]["checks"] if c["metric"] == "latency_p95_ms")
        assert report["verdict"] == "met", done.stderr
        assert 0.6 * limit <= check["value"] <= limit
        stored = {step["title"]: step["stored"] for step in report["steps"]}
        assert stored["teacher"]
        assert stored["costs on local"]
