"""Fixtures for all tests."""

import os
import signal

import pytest
from tiny_run import attar_process, write_tiny

# Networks this small wait for a second thread longer than they work. Read when torch wakes, here and in processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests that were started in the background, or by nohup, ignore these, and the processes that they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def tiny(tmp_path):
    """The tiny recipe in a folder of its own."""
    return write_tiny(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def own_lease(tmp_path_factory):
    """A cache of these tests' own: they do not wait for whoever measures on this machine, nor leave anything there."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder in which the tiny recipe ran once."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny(folder)
    done = attar_process("run", "tiny.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done
