"""A search over a real recipe: real pruning, real measuring, a real journal."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import attar, write_tiny

from pipeline import space
from pipeline.optimizer import Study
from pipeline.recipe import load
from targets.errors import InputError

RECIPE = """\
version: 1
name: tiny
seed: 4
data: {source: tiny.npz, mean: [0.5], std: [0.25], validation: 0.3}
model: {source: "stages.testing:tiny_cnn", args: {classes: 4}, train: {epochs: 6, batch_size: 16}}
stages:
  - prune: {keep: 0.75, samples: 16}
  - export: {samples: 8}
targets:
  - use: quick.yaml
    budget: {accuracy_drop_points: 60.0, latency_p50_ms: 50.0, size_mb: 1.0}
search:
  space:
    stages.0.prune.keep: [0.75, 0.5]
    stages.0.prune.exclude: [[], ["nowhere*"]]
  trials: 4
"""
QUICK = """\
name: quick
extends: local
meter: {samples: 30, blocks: 3, warmup_s: 0.0, throughput_batch: 4, energy_s: 0}
"""


def written(folder, text=RECIPE):
    path = write_tiny(folder, text)
    (folder / "quick.yaml").write_text(QUICK, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search that was killed in its second trial, and given again."""
    folder = tmp_path_factory.mktemp("search")
    written(folder)
    command = [sys.executable, "-P", "-m", "pipeline.cli", "search", "tiny.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1", "COLUMNS": "200"}
    seen = []
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stderr:
            seen.append(line)
            if re.match(r"note +trial 2: stages", line):
                break
        running.send_signal(signal.SIGKILL)
    assert any(re.match("note +trial 1: [a-z]+ on quick", line) for line in seen), "".join(seen)
    done = attar("search", "tiny.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, "".join(seen), done


def test_a_killed_search_goes_on_without_repeating_a_trial(searched):
    _, before, done = searched
    made = json.loads(done.stdout)
    assert made["earlier"] == 1
    tried = [json.dumps(trial["settings"]) for trial in made["trials"]]
    assert len(set(tried)) == len(tried) == 4
    asked = re.findall(r"^note +trial \d: (stages.*)$", before, re.M)
    again = re.findall(r"^note +trial \d: (stages.*)$", done.stderr, re.M)
    assert asked[0] not in again
    assert asked[1] == again[0]  # the one that was cut short
    told = before + done.stderr
    assert told.count("start  teacher") == 1
    assert told.count("start  measure on quick") == 2


def test_a_trial_that_cannot_be_run_is_kept_with_its_reason(searched):
    made = json.loads(searched[2].stdout)
    failed = [trial for trial in made["trials"] if trial["verdict"] == "failed"]
    assert [trial["settings"]["stages.0.prune.exclude"] for trial in failed] == [["nowhere*"], ["nowhere*"]]
    assert all("nowhere*" in trial["reason"] and not trial["found"] for trial in failed)


def test_only_the_pick_is_looked_at_on_test_and_its_command_makes_it(searched):
    folder, before, done = searched
    made = json.loads(done.stdout)
    assert (before + done.stderr).count("start  verdict on quick") == 1
    (pick,) = made["picks"]
    assert pick["verdict"] == made["verdict"] == "met"
    assert pick["test"]["accuracy"]["samples"] == 200
    measured = {t["number"]: t["found"][0]["measured"] for t in made["trials"] if t["found"]}
    assert all(row["accuracy"]["samples"] < 200 for row in measured.values())
    assert pick["trial"] in made["targets"][0]["frontier"]
    words = shlex.split(pick["command"])
    assert words[:3] == ["attar", "run", "tiny.yaml"]
    run = attar(*words[1:], "--json", cwd=folder)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert all(step["stored"] for step in report["steps"])
    assert report["targets"][0]["test"] == pick["test"]
    assert report["targets"][0]["chosen"] == pick["candidate"]


def test_every_form_has_every_trial(searched):
    folder, _, done = searched
    out = folder / "runs" / "tiny-search"
    assert {p.name for p in out.iterdir()} == {
        *("report.html", "report.md", "report.json", "events.jsonl", "search.lock")
    }
    assert json.loads((out / "report.json").read_text()) == json.loads(done.stdout)
    page, card = (out / "report.html").read_text(), (out / "report.md").read_text()
    command = json.loads(done.stdout)["picks"][0]["command"]
    for number in range(1, 5):
        assert f"trial {number}" in page
        assert f"trial {number}" in card
        assert f"trial {number}" in done.stderr
    assert page.count('class="dot"') >= 2  # the teacher and the pick
    assert "<polyline" in page or page.count('class="hollow"')
    assert command in card
    assert "experimental" not in done.stderr.lower()
    assert "optuna" not in done.stderr.lower()


def test_without_a_search_part_or_optuna_it_is_said(tmp_path):
    written(tmp_path, RECIPE.partition("search:")[0])
    done = attar("search", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "tiny.yaml has no search part" in done.stderr
    written(tmp_path)
    (tmp_path / "optuna.py").write_text("raise ImportError('as if it were not there')", encoding="utf-8")
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    code = "import sys; from pipeline.cli import app; sys.exit(app._guarded(['search', 'tiny.yaml']))"
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "pip install 'attar[search]'" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("space: {}", "search: has an empty space"),
        ("space: {stages.0.prune.keep: []}", r"stages\.0\.prune\.keep: is an empty list"),
        ("space: {stages.0.prune.keep: [0.5, 0.5]}", "lists a value twice"),
        ("space: {stages.0.prune.keep: 0.5}", "0.5 must be a list"),
        ("space: {stages.0.prune.keep: {low: 0.9, high: 0.5}}", "low 0.9 is above high 0.5"),
        ("space: {stages.0.prune.keep: {low: 0.5}}", "high: is required and missing"),
        ("space: {stages.0.prune.keep: {low: 0, high: 1.0, log: true}}", "log needs a low above 0"),
        ("space: {stages.0.prune.keep: {low: 0.1, high: 1.0, log: true, step: 0.1}}", "has a step and log"),
        ("space: {stages.0.prune.keep: {low: 0.1, high: 1.0, step: 0}}", "0 must be .*0"),
        ("space: {stages.0.prune.keep: [0.5, 1.3]}", "keep: 1.3 must be above 0 and at most 1"),
        ("space: {stages.0.prune.keep: {low: 0.5, high: 1.3}}", "1.3 must be above 0 and at most 1"),
        ("space: {stages.0.prune.keeep: [0.5]}", r"stages\.0\.prune\.keeep: \[?0.5\]?: unknown key\n.*\n.*'keep'"),
        ("space: {stages.7.prune.keep: [0.5]}", "no place for '7'"),
        ("space: {stages.0.prune.speedup: [2.0]}", "one of to, keep and speedup"),
        ("space: {data.limit: [100]}", "is no setting of a stage"),
        ("space: {stages.0.prune: [{keep: 0.5}], stages.0.prune.keep: [0.5]}", "lies inside stages.0.prune"),
        ("{space: {stages.0.prune.keep: {low: 0.1, high: 0.5}}, sampler: grid}", "sampler grid takes lists"),
        ("{space: {stages.0.prune.keep: [0.5]}, trials: 0}", "0 must be at least 1"),
        ("{space: {stages.0.prune.keep: [0.5]}, tirals: 2}", "did you mean 'trials'"),
    ],
)
def test_a_bad_space_is_told_with_its_line(tmp_path, part, said):
    text = RECIPE.partition("search:")[0] + "search:\n  " + part + "\n"
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=said) as caught:
        load(path)
    assert {fault.line for fault in caught.value.faults} <= {12, 13}
    assert len(caught.value.faults) == 1


def test_faults_elsewhere_are_told_once(tmp_path):
    path = written(tmp_path, RECIPE.replace("samples: 8", "samples: 0"))
    with pytest.raises(InputError, match="samples: 0 must be at least 1") as caught:
        load(path)
    assert len(caught.value.faults) == 1


def test_check_builds_what_the_search_may_come_to(tmp_path):
    written(tmp_path)
    done = attar("check", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"tiny\.yaml:15: .*exclude.*nowhere\*", done.stderr), done.stderr


SPACES = {
    "grid": {"a": [1, 2, 3], "b": [True, {"x": 1}]},
    "tpe": {"a": {"low": 1, "high": 8, "log": True}, "b": {"low": 0.1, "high": 0.95, "step": 0.1}, "c": [1, [2]]},
    "random": {"a": {"low": 0.5, "high": 2.0, "log": True}},
}


def _proposed(path, spec, count, again=()):
    """Settings of `count` trials; before those in `again` the program is killed with a trial in hand."""
    study, found = Study(path, 2, spec, seed=5), []
    for i in range(count):
        asked = study.ask()
        if i in again:
            with path.open("ab") as file:
                file.write(b'{"half a li')
            path.with_name(f"{path.name}.lock").symlink_to("a-process-that-is-gone")
            study = Study(path, 2, spec, seed=5)
            assert len(study.told()) == i
            asked = study.ask()
        found.append(asked.settings)
        study.tell(asked, None if i == 1 else [float(i % 3), float(i % 2)], {"number": asked.number})
    assert [told["number"] for told in Study(path, 2, spec, seed=5).told()] == list(range(1, count + 1))
    return found


@pytest.mark.parametrize("sampler", SPACES)
def test_proposals_follow_from_the_seed_also_after_a_kill(tmp_path, sampler):
    spec = space.SearchSpec.model_validate({"space": SPACES[sampler], "trials": 6, "sampler": sampler})
    whole = _proposed(tmp_path / "whole.jsonl", spec, 6)
    assert whole == _proposed(tmp_path / "killed.jsonl", spec, 6, again=(0, 2, 5))
    assert len({json.dumps(settings) for settings in whole}) == 6
    for settings in whole:
        for key, of in spec.space.items():
            listed = space.values(of)
            assert settings[key] in listed if listed is not None else of.low <= settings[key] <= of.high


def test_a_small_space_is_gone_through_and_then_over(tmp_path):
    spec = space.SearchSpec.model_validate({"space": {"a": [1, 2], "b": [1, 2]}, "sampler": "tpe"})
    study, found = Study(tmp_path / "j.jsonl", 2, spec, seed=5), set()
    while asked := study.ask():
        found.add(json.dumps(asked.settings))
        study.tell(asked, [1.0, 1.0], {})
    assert len(found) == 4
