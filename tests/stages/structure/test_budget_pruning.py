"""Pruning to a budget: with a table and a bench made up, and once with the real ones on this machine."""

import json
from dataclasses import replace

import pytest
import torch
from nets import holder

from stages import STAGES
from stages.base import Candidate, perform
from stages.network import build
from stages.settings import PruneConfig
from stages.structure.anatomy import dissect
from stages.structure.budget import to_budget
from stages.structure.table import Costs
from stages.structure.trial import examples
from stages.testing import context, digest_of, tiny_splits, tiny_teacher
from targets.budget import Budget
from targets.errors import InputError, StageError
from targets.target import Meter, Target, load, only

DATA = tiny_splits()
ARGS = {"depth": 14, "classes": 4, "in_channels": 1, "width": 8}
TO_BUDGET = PruneConfig(to="budget", steps=2, samples=64)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), DATA, "stages.zoo:resnet", epochs=2, **ARGS)


@pytest.fixture(scope="module")
def anatomy(teacher):
    return dissect(build(teacher), examples(DATA))


@pytest.fixture(scope="module")
def costs(anatomy):
    """Each block takes a tenth of the time; narrow streams save time, narrow insides of blocks only size."""
    saving = {"latency_p50_ms": 0.1, "size_mb": 0.02}
    narrow = {
        strand.kind: {
            strand.channels // 2: {"latency_p50_ms": 0.0 if holder(anatomy, strand) else 0.06, "size_mb": 0.03},
            strand.channels // 4: {"latency_p50_ms": 0.0 if holder(anatomy, strand) else 0.09, "size_mb": 0.04},
        }
        for strand in anatomy.strands
    }
    whole = {"latency_p50_ms": 1.0, "latency_p95_ms": 1.2, "size_mb": 0.5, "peak_memory_mb": 30.0}
    least = {"latency_p50_ms": 0.3, "latency_p95_ms": 0.36, "size_mb": 0.1, "peak_memory_mb": 20.0}
    return Costs(whole, least, {block.kind: saving for block in anatomy.blocks}, narrow)


class Bench:
    """Finds every structure slower than the table says, by a factor; remembers what it was asked."""

    def __init__(self, anatomy, table, factor=1.0):
        self.anatomy, self.table, self.factor, self.asked = anatomy, table, factor, []

    def costs(self):
        return self.table

    def check(self, shape, costs, *, timed=True):
        found = self.table.predict(self.anatomy, shape)
        if not timed:
            return {"size_mb": found["size_mb"]}
        self.asked.append(shape)
        return {"latency_p50_ms": found["latency_p50_ms"] * self.factor, "size_mb": found["size_mb"]}


def surveyed(folder, costs, **budget):
    """A context with a stored table, and a target with these limits."""
    ctx = context(folder, DATA, target=Target(name="board", budget=Budget(**budget)))
    (folder / "costs").mkdir()
    (folder / "costs" / "costs.json").write_text(json.dumps(costs.to_json()))
    return replace(ctx, costs=folder / "costs")


def test_the_budget_is_spent_and_the_cut_network_is_what_was_written(teacher, anatomy, costs, tmp_path):
    bench = Bench(anatomy, costs)
    ctx = surveyed(tmp_path / "a", costs, latency_p95_ms=1.0, size_mb=0.45)
    made = to_budget(teacher, TO_BUDGET, ctx, bench)
    step = made.steps[-1]
    assert step.changed
    assert step.metrics["predicted_latency_p95_ms"] <= 0.85
    assert step.metrics["predicted_size_mb"] <= 0.45 * 0.85
    assert step.metrics["predicted_latency_p95_ms"] > 0.72  # one block more would still have fitted below
    assert step.metrics["checked_latency_p50_ms"] == pytest.approx(step.metrics["predicted_latency_p50_ms"])
    assert step.metrics["parameters"] < step.metrics["parameters_before"]
    assert step.metrics["macs"] < step.metrics["macs_before"]
    assert 0 < step.metrics["channels_kept"] < 1
    gone = [cut.module for cut in made.surgery if cut.kind == "identity"]
    assert step.metrics["blocks_removed"] == len(gone) == len(bench.asked[-1].gone)
    assert any(note.startswith(f"removed {len(gone)} of {len(anatomy.blocks)} blocks: ") for note in step.notes)
    assert any(note.startswith("latency_p95_ms 0.") and "1.2 in the whole network" in note for note in step.notes)
    assert len(bench.asked) == 1
    with torch.no_grad():
        assert build(made)(examples(DATA)).shape == (4, 4)
    again = to_budget(teacher, TO_BUDGET, surveyed(tmp_path / "b", costs, latency_p95_ms=1.0, size_mb=0.45), bench)
    assert again.surgery == made.surgery
    assert digest_of(tmp_path / "a" / "out") == digest_of(tmp_path / "b" / "out")


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_what_is_measured_corrects_the_table(teacher, anatomy, costs, tmp_path, factor):
    bench = Bench(anatomy, costs, factor)
    made = to_budget(teacher, TO_BUDGET, surveyed(tmp_path / "a", costs, latency_p50_ms=0.9), bench)
    first, *_, last = bench.asked
    assert (len(last.gone) > len(first.gone)) or (factor < 1)
    taken = [costs.predict(anatomy, shape)["latency_p50_ms"] * factor for shape in (first, last)]
    assert taken[1] <= 0.9 * 0.85 + 1e-9
    assert abs(taken[1] - 0.9 * 0.85) < abs(taken[0] - 0.9 * 0.85)
    metrics = made.steps[-1].metrics
    assert metrics["predicted_latency_p50_ms"] == pytest.approx(taken[1])
    assert metrics["checked_latency_p50_ms"] == pytest.approx(taken[1])
    checks = [note for note in made.steps[-1].notes if note.startswith("check ")]
    assert len(checks) == len(bench.asked) >= 2
    off = "-20.0%" if factor > 1 else "+25.0%"
    assert f"found ({off}); size_mb" in checks[0]


def test_a_network_that_fits_stays_whole(teacher, anatomy, costs, tmp_path):
    ctx = surveyed(tmp_path / "a", costs, latency_p95_ms=2.0, energy_mj=1.0)
    bench = Bench(anatomy, costs)
    made = perform_with(bench, teacher, ctx)
    assert not made.steps[-1].changed
    assert made.surgery == ()
    assert not bench.asked
    assert "the whole network fits: latency_p95_ms 1.2 of 2" in made.steps[-1].notes
    assert "not predicted on this target, so not looked at: energy_mj" in made.steps[-1].notes
    assert made.steps[-1].metrics["predicted_latency_p95_ms"] == 1.2


def perform_with(bench, candidate, ctx):
    return to_budget(candidate, TO_BUDGET, ctx, bench)


def test_size_alone_is_not_timed(teacher, anatomy, costs, tmp_path):
    bench = Bench(anatomy, costs)
    made = perform_with(bench, teacher, surveyed(tmp_path / "a", costs, size_mb=0.5))
    assert not bench.asked
    assert "checked_latency_p50_ms" not in made.steps[-1].metrics
    assert any(note.startswith("narrowed ") for note in made.steps[-1].notes)


def test_unusable_budgets_are_refused(teacher, anatomy, costs, tmp_path):
    bench = Bench(anatomy, costs)
    with pytest.raises(StageError, match=r"prune: \{to: budget\} needs a limit on latency, size, memory"):
        perform_with(bench, teacher, surveyed(tmp_path / "a", costs, accuracy_drop_points=1.0))
    with pytest.raises(StageError, match="needs a limit"):
        to_budget(teacher, TO_BUDGET, context(tmp_path / "b", DATA))
    closest = r"latency_p95_ms 0\.2 is out of reach: the smallest structure was measured to take 0\.36"
    with pytest.raises(InputError, match=closest):
        perform_with(bench, teacher, surveyed(tmp_path / "c", costs, latency_p95_ms=0.2, peak_memory_mb=15))
    slow = Bench(anatomy, costs, 3.0)  # the table promised more than the target holds
    near = perform_with(slow, teacher, surveyed(tmp_path / "d", costs, latency_p50_ms=0.9)).steps[-1]
    assert any("the closest structure, yet not within latency_p50_ms" in note for note in near.notes)
    other = Costs(costs.whole, costs.smallest, {"another": {"latency_p50_ms": 0.1, "size_mb": 0.0}}, {})
    with pytest.raises(StageError, match=r"none of \d blocks and \d+ groups of channels saves any of latency_p50_ms"):
        perform_with(bench, teacher, surveyed(tmp_path / "e", other, latency_p50_ms=0.9))


def test_a_network_that_was_cut_before_is_measured_anew(teacher, anatomy, costs, tmp_path):
    """The stored table is of the network as its source builds it."""
    once = perform_with(Bench(anatomy, costs), teacher, surveyed(tmp_path / "a", costs, latency_p50_ms=1.0))
    left = dissect(build(once), examples(DATA))
    narrow = replace(costs, whole={**costs.whole, "latency_p50_ms": 0.8})
    spoiled = replace(costs, whole={**costs.whole, "latency_p50_ms": 50.0})
    ctx = surveyed(tmp_path / "b", spoiled, latency_p50_ms=0.8)
    twice = perform_with(Bench(left, narrow), once, ctx)
    assert len(twice.surgery) > len(once.surgery)
    assert twice.surgery[: len(once.surgery)] == once.surgery
    assert build(twice)(examples(DATA)).shape == (4, 4)


@pytest.mark.slow
def test_on_this_machine(tmp_path):
    """All parts are the real ones: the table and the checks are measured here, and the frame runs the stage."""
    args = {"depth": 8, "classes": 4, "in_channels": 1, "width": 16}
    teacher = tiny_teacher(tmp_path / "teacher", DATA, "stages.zoo:resnet", epochs=1, **args)
    meter = Meter(samples=60, blocks=5, max_seconds=2, warmup_s=0.05, energy_s=0)
    budget = Budget(speedup_p50=1.02, size_mb=10)
    config = PruneConfig(to="budget", aim=1.0, steps=1, samples=64, exclude=("stages.1.*", "stages.2.*"))
    target = load("local").model_copy(update={"meter": meter, "budget": budget})
    seen = only(target, STAGES["prune"].looks_at(config))
    assert seen.budget == budget
    ctx = context(tmp_path / "run", DATA, target=seen)
    made = perform(STAGES["prune"], teacher, config, ctx)
    step = made.steps[-1]
    assert step.changed
    assert step.metrics["predicted_speedup_p50"] >= 1.02
    assert step.metrics["checked_latency_p50_ms"] > 0
    assert any(note.startswith("check 1: latency_p50_ms ") for note in step.notes)
    assert Candidate.load(ctx.out) == made
