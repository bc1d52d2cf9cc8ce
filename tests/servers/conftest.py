"""Real servers for tests: installed once, the first time that a test asks for one."""

import pytest
from install import installed
from shipping import artifact_from


@pytest.fixture(scope="session")
def triton_here():
    """NVIDIA's Triton is installed: the lightest of the servers (300 MB), and the one that loads models when told."""
    return installed("triton")


@pytest.fixture(scope="session")
def artifacts(finished, tmp_path_factory):
    """Artifacts of one recipe: two that are in order, and one whose model does not answer as its papers say."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {
        "first": artifact_from(finished[0], folder / "first"),
        "second": artifact_from(finished[0], folder / "second", bias=0.5),
        "wrong": artifact_from(finished[0], folder / "wrong", bias=0.25, shift=0.125),
    }
