"""What the command prints: lines in a terminal, and JSON."""

import errno
import json
import os
import termios
from contextlib import redirect_stderr
from unittest.mock import patch

import pytest
from tiny_run import attar

from pipeline.cli import app, shared
from targets.errors import Fault


def in_a_terminal(*messages):
    """What a terminal of 60 columns shows of messages, by line."""
    return shown_by(lambda: [shared.tell(*message) for message in messages])


def shown_by(call):
    """What a terminal of 60 columns shows of a call, by line."""
    outer, inner = os.openpty()
    termios.tcsetwinsize(inner, (24, 60))
    with os.fdopen(inner, "w", encoding="utf-8") as file, redirect_stderr(file):
        with patch.dict(os.environ, {"COLUMNS": "60"}):
            call()
        file.flush()
        os.set_blocking(outer, False)
        shown = os.read(outer, 65536)
    os.close(outer)
    return shown.decode().replace("\r\n", "\n").splitlines()


def test_lines_break_between_words_and_nothing_breaks_that_is_copied():
    command = "tritonserver --model-repository='some folder/with a rather long/name/models'"
    assert in_a_terminal(
        ("digits version 1 lies in", "some folder/with a rather long/name/models/digits/1"),
        ("  a server may join single requests into batches of up to 8, and takes no larger request",),
        ("  start it with:", command),
        ("next:", "attar probe URL"),
    ) == [
        "digits version 1 lies in",
        "  some folder/with a rather long/name/models/digits/1",
        "  a server may join single requests into batches of up to 8,",
        "    and takes no larger request",
        "  start it with:",
        f"    {command}",
        "next: attar probe URL",
    ]


def test_a_fault_keeps_its_lines():
    source = "   14 |   - prune: {keep: 1.3}   # a comment that is as long as comments may be in a recipe"
    command = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem"
    what = "recipe.yaml:14: stages[1].prune.keep: 1.3 must be above 0 and at most 1"
    assert in_a_terminal(
        (f"{what}\n{source}\n   help: see `a b c`",),
        (f"k: is none\n   help: a pair that will do:\n      {command}",),
        ("f: what\n   help: say a great many words before `attar ship DIR DEST --to triton`; then go on",),
    ) == [
        "recipe.yaml:14: stages[1].prune.keep: 1.3 must be above 0",
        "  and at most 1",
        source,
        "   help: see `a b c`",
        "k: is none",
        "   help: a pair that will do:",
        f"      {command}",
        "f: what",
        "   help: say a great many words before",
        "     `attar ship DIR DEST --to triton`; then go on",
    ]


def test_wrong_words_on_the_command_line_break_too():
    words = ["ship", "a", "b", "--to", "triton", "--max-batch", "many, which is a long word for a number, and is none"]
    codes = []
    lines = shown_by(lambda: codes.append(app._guarded(words)))
    assert codes == [2]
    assert "Invalid value for '--max-batch'" in " ".join(lines)
    assert max(map(len, lines)) <= 60


def test_a_name_with_a_line_break_takes_one_line():
    assert str(Fault("is missing", file="a\nb", line=3)) == "a\ufffdb:3: is missing"


@pytest.mark.parametrize(("command", "said"), [("bom", ""), ("run", "; what was finished is stored")])
def test_what_cannot_be_written_is_told_and_what_is_kept(capsys, monkeypatch, command, said):
    def full(*words, **more):
        raise OSError(errno.ENOSPC, "No space left on device", "a\nb")

    monkeypatch.setattr(app, "app", full)
    assert app._guarded([command]) == 3
    assert capsys.readouterr().err == f"a\ufffdb: No space left on device{said}\n"


def test_elsewhere_a_message_is_one_line(capsys):
    shared.tell("word " * 40 + "end:", "a command")
    assert capsys.readouterr().err == "word " * 40 + "end: a command\n"


def test_numbers_take_one_line_and_json_stays_what_it_is(capsys):
    value = {
        "raw": [[1.5, -2e-07, 3], [], [None, True]],
        "words": ["a, [1,\n 2]", "b"],
        "mixed": [1, "x", [2], {"y": [1]}],
        "text": "[\n 1,\n 2\n]",
    }
    shared.put_json(json.dumps(value, indent=1))
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert "[1.5, -2e-07, 3]" in text
    assert "[null, true]" in text
    assert text.count("\n") == 20


@pytest.mark.parametrize("command", ["ship", "probe", "sign", "verify", "pull", "bom"])
def test_help_says_what_exit_codes_mean(command, tmp_path):
    done = attar(command, "--help", cwd=tmp_path, env={"COLUMNS": "80"})
    assert "Exit code 0: " in done.stdout
    assert "; 2: " in " ".join(done.stdout.split())
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
