"""A Ctrl-C that a library swallowed ends the program when it next says something."""

import pytest

from pipeline.cli import app, interruption
from pipeline.cli.shared import say


@pytest.fixture
def swallowed(monkeypatch):
    monkeypatch.setattr(interruption, "_asked", True)


def test_the_next_message_ends_the_program(swallowed, capsys):
    with pytest.raises(KeyboardInterrupt):
        say("going on")
    assert capsys.readouterr().err == ""


def test_an_error_on_its_way_is_told_and_tidied_up_after(swallowed, capsys):
    def work():
        try:
            raise ValueError("broken")
        finally:
            say("tidied up")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert capsys.readouterr().err == "tidied up\n"


def test_what_is_wrong_is_told_all_the_same(swallowed, capsys):
    assert app._guarded(["verify", "/nowhere"]) == 2
    assert "/nowhere: cannot be looked into" in capsys.readouterr().err


def test_a_command_that_would_have_gone_on_is_interrupted(swallowed, capsys, finished):
    assert app._guarded(["verify", str(finished[0] / "runs/tiny/quick")]) == 130
    assert capsys.readouterr().err == "\ninterrupted; the same command starts over\n"
