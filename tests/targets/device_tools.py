"""For tests of devices: jobs, probes that misbehave, and a look at what is still running."""

import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np

from targets.devices import stream
from targets.devices.bundle import bundle
from targets.testing import tiny_onnx

METER = {"warmup_s": 0, "samples": 30, "blocks": 3, "max_seconds": 60, "throughput_batch": 1, "pin": False}
METER["energy_s"] = 0
ENDLESS = {**METER, "samples": 1_000_000, "max_seconds": 600}
RUNTIME = {"provider": "CPUExecutionProvider", "options": {}, "fallback": [], "threads": 1}
MODELS = {"a": {"file": "a.onnx", "inputs": {"x": "x.npy"}, "whole": False}}
JOB = {"version": 2, "tasks": ["latency"], "models": MODELS, "runtime": RUNTIME, "meter": METER, "batch": 1}
OUTPUTS = {**JOB, "tasks": ["outputs"]}


def write_files(folder):
    """The files of `JOB`."""
    np.save(folder / "x.npy", np.zeros((2, 3, 4, 4), np.float32))
    tiny_onnx(folder / "a.onnx")


def fake_job(monkeypatch, text):
    """From now on, the probe that goes to devices does this instead of a job; the folder is its working directory."""
    body = "".join(f"    {line}\n" for line in text.splitlines())
    fake = f"import json, os, subprocess, sys, time\nfrom pathlib import Path\ndef main(argv):\n{body}    return 0\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle())) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, fake if name == "targets/probe/job.py" else old.read(name))
    monkeypatch.setattr(stream, "bundle", packed.getvalue)


def running(marker):
    """Processes other than this one whose command line holds `marker`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, UnicodeDecodeError):
            continue
        if marker in command and state != "Z" and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def appears(marker, within_s=20.0):
    """Waits until such a process runs; gives them."""
    deadline = time.monotonic() + within_s
    while not (found := running(marker)):
        assert time.monotonic() < deadline, f"no process of {marker}"
        time.sleep(0.02)
    return found


def gone(marker, within_s=10.0):
    """Whether no such process runs any more."""
    deadline = time.monotonic() + within_s
    while running(marker):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def emptied(folder, within_s=5.0):
    """Whether the folder has become empty."""
    deadline = time.monotonic() + within_s
    while any(folder.iterdir()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
