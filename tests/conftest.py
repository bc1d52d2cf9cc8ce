"""Fixtures for all tests."""

import pytest
from tiny_run import write_tiny


@pytest.fixture
def tiny(tmp_path):
    """The tiny recipe in a folder of its own."""
    return write_tiny(tmp_path)
