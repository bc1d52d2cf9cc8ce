"""Every stage in the table keeps the contract; a stage without a case breaks collection. And the battery bites."""

from dataclasses import replace

import pytest

from stages import STAGES
from stages.base import Step
from stages.settings import PruneConfig
from stages.testing import Case, battery


@pytest.mark.parametrize("check", [check for name in STAGES for check in battery(name)], ids=str)
def test_stage(check, tmp_path):
    check(tmp_path)


def test_a_stage_without_a_case_breaks_collection():
    with pytest.raises(KeyError, match="sparsify"):
        battery("sparsify", stages={"sparsify": replace(STAGES["prune"], name="sparsify")})


def idle(candidate, config, context):
    (context.out / "w.safetensors").write_bytes(candidate.weights.read_bytes())
    return candidate.then(Step("prune", changed=False), weights=context.out / "w.safetensors")


def meddling(candidate, config, context):
    candidate.weights.write_bytes(candidate.weights.read_bytes() + b" ")
    return candidate.then(Step("prune"), weights=None)


def careless(candidate, config, context):
    """Writes where it happens to run."""
    (context.out / "w.safetensors").write_bytes(candidate.weights.read_bytes())
    (context.out / "log").write_text(str(context.out))
    return candidate.then(Step("prune"), weights=context.out / "w.safetensors")


def misnamed(candidate, config, context):
    (context.out / "w.safetensors").write_bytes(candidate.weights.read_bytes())
    return candidate.then(Step("purne"), weights=context.out / "w.safetensors")


@pytest.mark.parametrize(
    ("function", "caught_by"), [(idle, "works"), (meddling, "works"), (careless, "repeats"), (misnamed, "works")]
)
def test_a_bad_stage_is_caught(tmp_path, function, caught_by, monkeypatch):
    bad = replace(STAGES["prune"], run="bad_stage:run")
    monkeypatch.setattr(type(bad), "function", lambda self: function)
    checks = battery("prune", {"prune": bad}, {"prune": Case(PruneConfig(keep=0.5))})
    (check,) = [check for check in checks if str(check) == f"prune-{caught_by}"]
    with pytest.raises(AssertionError):
        check(tmp_path)
