"""A tiny recipe that goes through everything in seconds, and the command that runs it: here, or in a process."""

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np

TINY = """\
version: 1
name: tiny
seed: 3
task: classification
data: {source: tiny.npz, mean: [0.5], std: [0.25], validation: 0.3}
model: {source: "stages.testing:tiny_cnn", args: {classes: 4}, train: {epochs: 8, batch_size: 16}}
stages:
  - distill: {students: [{keep: 1.0}, {keep: 0.5}], epochs: 6, batch_size: 16}
  - prune: {keep: 0.75}
  - distill: {epochs: 4, batch_size: 16}
  - quantize: {samples: 32, pays: false, qat: null}
  - export: {samples: 8}
targets:
  - use: quick.yaml
    budget: {accuracy_drop_points: 15.0, latency_p50_ms: 50.0, size_mb: 1.0}
"""

QUICK = """\
name: quick
extends: local
meter: {samples: 60, blocks: 3, warmup_s: 0.02, throughput_batch: 8, energy_s: 0.4}
"""


def write_tiny(folder: Path, text: str = TINY) -> Path:
    """Writes the tiny recipe with its target and data into `folder`; returns the recipe's path."""
    random = np.random.default_rng(0)
    patterns = random.integers(40, 216, (4, 8, 8, 1))

    def split(n):
        labels = np.arange(n) % 4
        return (patterns[labels] + random.normal(0, 40, (n, 8, 8, 1))).clip(0, 255).astype(np.uint8), labels

    (x, y), (x_test, y_test) = split(240), split(200)
    np.savez(folder / "tiny.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    (folder / "quick.yaml").write_text(QUICK, encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def attar(*arguments, cwd, env=None):
    """Runs the command in this process, from its arguments to its exit code: seconds less than `attar_process` takes.

    What belongs to a process (signals, the entry point, what libraries print past Python) needs `attar_process`.
    """
    from pipeline.cli.app import _guarded

    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with patch.dict(os.environ, _environment(env)), chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        code = _guarded(words)
    if code == 130:  # whoever pressed Ctrl-C meant all tests
        raise KeyboardInterrupt
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def attar_process(*arguments, cwd, env=None, **options):
    """Runs the real command in a real process."""
    command, environment = _command(arguments, env)
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600, **options
    )


def attar_started(*arguments, cwd, env=None):
    """The real command in a real process that runs on; what it says is thrown away."""
    command, environment = _command(arguments, env)
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=cwd, env=environment, **silent)


def _command(arguments, env):
    words = [sys.executable, "-P", "-m", "pipeline.cli", *map(str, arguments)]  # -P: as the installed command
    return words, {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **_environment(env)}


def _environment(more):
    return {"NO_COLOR": "1", "COLUMNS": "100", **(more or {})}
