"""The ladder as a user meets it: the stage with `engine: auto`, on networks that break the cheap ways."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from stages import STAGES
from stages.base import perform
from stages.int8 import ladder
from stages.int8.bench import Bench, Try
from stages.settings import ExportConfig, QatConfig, QuantizeConfig
from stages.testing import context, heavy_tailed, tiny_splits, tiny_teacher
from stages.vendors import ort_quantizer
from targets.budget import Budget
from targets.errors import StageError
from targets.target import Target

DATA = tiny_splits()
TIGHT = Target(name="here", budget=Budget(accuracy_drop_points=3))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), DATA)


@pytest.fixture(scope="module")
def heavy(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heavy")
    changed = heavy_tailed(teacher, folder / "changed", DATA)
    return perform(STAGES["export"], changed, ExportConfig(), context(folder / "exported", DATA))


def quantized(candidate, folder, teacher, **config):
    where = context(folder, DATA, teacher=teacher, target=TIGHT)
    settings = QuantizeConfig(**{"pays": False, "samples": 160, "batch_size": 16, "qat": None, **config})
    return perform(STAGES["quantize"], candidate, settings, where)


def points_lost(made):
    """By title of what was tried, as the notes tell."""
    rows = (re.match(r"(.*): ([-+][0-9.]+) points lost", note) for note in made.steps[-1].notes)
    return {row[1]: float(row[2]) for row in rows if row}


def test_a_network_that_breaks_min_max_is_saved_and_the_rung_named(heavy, teacher, tmp_path):
    plain = quantized(heavy, tmp_path / "plain", teacher, engine="onnxruntime")
    saved = quantized(heavy, tmp_path / "saved", teacher)
    lost = points_lost(saved)
    assert lost["min-max"] > 5, "it is broken"
    assert plain.steps[-1].metrics["agreement"] < 0.95
    rung = list(lost)[-1]
    assert rung != "min-max"
    assert lost[rung] <= 3
    assert f"the ladder ended with {rung}: accuracy holds" in saved.steps[-1].notes
    assert saved.steps[-1].metrics["nodes_int8"] > 0


def test_one_rung_that_is_enough_is_all(teacher, tmp_path):
    exported = perform(STAGES["export"], teacher, ExportConfig(), context(tmp_path / "exported", DATA))
    made = quantized(exported, tmp_path / "made", teacher)
    assert points_lost(made) == {}
    fixed = quantized(exported, tmp_path / "fixed", teacher, engine="onnxruntime")
    assert made.onnx.read_bytes() == fixed.onnx.read_bytes()


def bench_of(candidate, folder, teacher, **config):
    from stages import graph

    where = context(folder, DATA, teacher=teacher, target=TIGHT)
    settings = QuantizeConfig(**{"samples": 64, "qat": None, **config})
    folded = ort_quantizer.fold(graph.read(candidate.onnx), where.scratch)
    rules = TIGHT.int8
    return Bench(candidate, settings, where, rules, folded, ort_quantizer.operators(rules))


def test_it_stops_when_its_time_is_spent_and_keeps_the_best(heavy, teacher, tmp_path, monkeypatch):
    bench = bench_of(heavy, tmp_path, teacher)
    clock = iter(range(0, 100_000, 40))  # every look at the clock is 40 seconds later
    monkeypatch.setattr(ladder.time, "monotonic", lambda: next(clock))
    found = ladder.climb(bench, {}, minutes=2)
    assert found.end == "its 2 minutes are spent"
    assert 1 <= len(found.attempts) < 4
    assert found.best.score.accuracy == max(attempt.score.accuracy for attempt in found.attempts)


def test_what_a_killed_run_had_tried_is_not_made_again(heavy, teacher, tmp_path):
    bench = bench_of(heavy, tmp_path, teacher)
    first = ladder.climb(bench, {}, minutes=10)
    made = []

    def watched(bench, best):
        yield Try("one more", lambda: made.append("one more") or best.setup)

    again = bench_of(heavy, tmp_path / "again", teacher)
    again.context = replace(again.context, scratch=bench.context.scratch)
    again.setup = lambda *asked: pytest.fail("calibrated anew")
    second = ladder.climb(again, {"watched": watched}, minutes=10)
    titles = [attempt.title for attempt in first.attempts]
    assert [attempt.title for attempt in second.attempts][: len(titles)] == titles
    assert second.attempts[0].score == first.attempts[0].score
    assert second.attempts[0].int8 == first.attempts[0].int8
    other = bench_of(heavy, tmp_path / "other", teacher, samples=32)
    other.context = replace(other.context, scratch=bench.context.scratch)
    assert ladder._Kept(other).find(titles[0]) is None, "other settings, another ladder"


def test_a_try_that_fails_is_told_and_passed(heavy, teacher, tmp_path):
    bench, said = bench_of(heavy, tmp_path, teacher), []
    bench.context = replace(bench.context, say=said.append)

    def broken(bench, best):
        def fail():
            raise StageError("no such luck")

        yield Try("broken", fail)

    bench.enough = lambda score: False
    found = ladder.climb(bench, {"broken": broken}, minutes=10)
    assert "broken: no such luck" in said
    assert "broken" not in [attempt.title for attempt in found.attempts]
    assert found.end == "no rung is left"


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = [{tests!r}]
    import test_int8_ladder as t
    from stages import STAGES
    from stages.base import Candidate, perform
    from stages.int8 import ladder
    candidate, teacher = Candidate.load(Path({heavy!r})), Candidate.load(Path({teacher!r}))
    keep = ladder._Kept.keep
    def once(self, attempt):
        found = keep(self, attempt)
        if {kill} and attempt.title != "min-max":
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    ladder._Kept.keep = once
    where = t.context(Path({folder!r}), t.DATA, teacher=teacher, target=t.TIGHT)
    settings = t.QuantizeConfig(pays=False, samples=160, batch_size=16, qat=None)
    perform(STAGES["quantize"], candidate, settings, where)
"""


def test_a_kill_on_the_ladder_loses_only_the_attempt_in_hand(heavy, teacher, tmp_path):
    whole = quantized(heavy, tmp_path / "whole", teacher)
    folder = tmp_path / "killed"
    names = {
        "tests": str(Path(__file__).parent),
        "heavy": str(heavy.onnx.parent),
        "teacher": str(teacher.weights.parent),
    }
    script = textwrap.dedent(KILLED).format(**names, folder=str(folder), kill=True)
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    kept = list((folder / "scratch" / "ladder").glob("*/*/attempt.json"))
    assert len(kept) >= 2
    before = {path: path.stat().st_mtime_ns for path in kept}
    where = replace(context(tmp_path / "rest", DATA, teacher=teacher, target=TIGHT), scratch=folder / "scratch")
    settings = QuantizeConfig(pays=False, samples=160, batch_size=16, qat=None)
    made = perform(STAGES["quantize"], heavy, settings, where)
    assert made.onnx.read_bytes() == whole.onnx.read_bytes()
    assert {path: path.stat().st_mtime_ns for path in kept} == before, "nothing of it was made again"


def test_training_is_one_of_the_rungs():
    from stages.quantize import RUNGS

    assert list(RUNGS)[-1] == "training"
    assert QuantizeConfig().qat == QatConfig()
