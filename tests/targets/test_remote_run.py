"""The whole tool with a board at the far end of a real SSH connection: the real command, the real server."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from device_tools import emptied, gone
from sshd import Sshd
from tiny_run import attar

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    started = Sshd(tmp_path_factory.mktemp("board"))
    yield started
    started.stop()


@pytest.fixture
def folder(finished, board, tmp_path):
    """The tiny recipe with everything trained and stored, and the profile of a board."""
    copied = tmp_path / "recipe"
    shutil.copytree(finished[0], copied, ignore=shutil.ignore_patterns("runs"))
    connection = {
        "python": sys.executable,
        "identity_file": str(board.identity),
        "known_hosts": str(board.known_hosts),
        "retries": 1,
    }
    profile = (copied / "quick.yaml").read_text().replace("name: quick", "name: board")
    profile += f"device: ssh://127.0.0.1:{board.port}\nconnection: {json.dumps(connection)}\n"
    (copied / "board.yaml").write_text(profile)
    return copied


def nothing_stays(board):
    assert gone(str(board.cache))
    assert emptied(board.cache / "work")


def test_a_recipe_is_judged_on_the_board(folder, board):
    done = attar("run", "tiny.yaml", "--set", "targets.0.use=board.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (target,) = report["targets"]
    assert target["environment"]["device"] == f"ssh://127.0.0.1:{board.port}"
    assert target["test"]["parity_percent"]["value"] == 100, "the same processor, by another way"
    stored = {step["title"]: step["stored"] for step in report["steps"]}
    assert [title for title, found in stored.items() if not found] == ["measure on board", "verdict on board"]
    nothing_stays(board)
    again = attar("validate", "runs/tiny/board", "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["environment"]["device"] == f"ssh://127.0.0.1:{board.port}"
    nothing_stays(board)


def test_a_board_that_is_not_there_is_told_before_any_training(folder, board, tmp_path):
    store = {"ATTAR_STORE": str(tmp_path / "empty store")}
    profile = (folder / "board.yaml").read_text().replace(f":{board.port}\n", ":1\n")
    (folder / "board.yaml").write_text(profile)
    done = attar("run", "tiny.yaml", "--set", "targets.0.use=board.yaml", cwd=folder, env=store)
    assert done.returncode == 3
    assert "was refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()


def test_a_board_that_vanishes_in_mid_measurement(folder, board):
    """Whoever serves the connection dies as often as it is made: one clear fault, and nothing is left running there."""
    command = [sys.executable, "-P", "-m", "pipeline.cli", "run", "tiny.yaml", "--set", "targets.0.use=board.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "100"}
    (folder / "board.yaml").write_text((folder / "board.yaml").read_text().replace("samples: 60", "samples: 1000000"))
    run = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < end:
        if any(board.cache.glob("work/*/job.json")):  # a job has begun
            board.drop()
        time.sleep(0.3)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 3, told
    assert "was lost" in told
    assert "stored" in told, "what was kept, and what to do"
    assert "Traceback" not in told
    nothing_stays(board)
    report = json.loads((folder / "runs" / "tiny.partial" / "report.json").read_text())
    assert report["verdict"] == "failed"
