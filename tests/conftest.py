"""Fixtures for all tests."""

import signal

import pytest
from tiny_run import write_tiny

# Tests that were started in the background ignore Ctrl-C, and the processes that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tiny(tmp_path):
    """The tiny recipe in a folder of its own."""
    return write_tiny(tmp_path)
