"""`attar profile`, for real: what it says, what it writes, and one clear fault for each kind of bad input."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from profiled_graphs import convolutions, quantized, two_inputs
from rich.console import Console
from tiny_run import attar, attar_process

from pipeline.profile import csv_text, profile
from pipeline.report import profile_html, profile_story, profile_terminal
from pipeline.report.model import Number
from pipeline.report.profile_model import FindingRow, HintRow, ModelRow, OperatorRow, Profile, ProfilerRow, SweepRow
from targets.testing import FakeDevice, tiny_onnx

TALL = {"COLUMNS": "80"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An int8 file whose int8 operators run in float, against its float twin: one run of the command."""
    folder = tmp_path_factory.mktemp("profile")
    quantized(folder / "int8.onnx", np.uint8, np.int8, size=56)
    convolutions(folder / "float.onnx", size=56)
    options = ("--against", "float.onnx", "--batch", "1,2", "--seconds", "0.6", "--top", "3")
    files = ("--json", "--csv", "ops.csv", "--html", "page.html")
    done = attar_process("profile", "int8.onnx", *options, *files, cwd=folder, env=TALL)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def found(run):
    return Profile.model_validate_json(run[1].stdout)


def test_json_holds_all_there_is(found):
    first, second = found.models
    assert (first.name, second.name) == ("int8.onnx", "float.onnx")
    for model in found.models:
        assert sum(map(len, model.raw["latency_ms"])) >= 30
        assert {"latency_p50_ms", "throughput_per_s", "peak_memory_mb", "session_ms", "size_mb"} <= set(model.numbers)
        p50 = model.numbers["latency_p50_ms"]
        assert p50.low <= p50.value <= p50.high
        assert model.numbers["throughput_per_s"].value == pytest.approx(1e3 / p50.value)
        assert sum(op.share for op in model.operators) == pytest.approx(1)
        assert model.placement == {"CPUExecutionProvider": len(model.operators)}
        assert model.fallback_nodes == 0
        assert len(model.raw["session_ms"]) >= 1
    assert second.ratio is not None
    assert first.ratio is None
    assert found.environment["onnxruntime"]
    assert [(row.batch, row.threads) for row in found.sweeps] == [(1, 1), (2, 1)]
    assert found.sweeps[1].throughput_per_s["int8.onnx"].value > 0
    assert found.settings["seconds"] == 0.6


def test_silent_lies_are_findings(found):
    first, second = found.models
    kinds = {finding.kind: finding for finding in first.findings}
    assert set(kinds) == {"float_int8", "slower"}
    assert first.float_int8_nodes == 2
    assert kinds["float_int8"].nodes == ("conv", "add")
    assert re.fullmatch(
        r"int8, and yet its p50 is \d\.\d\d times as long as that of float\.onnx, which is float", kinds["slower"].what
    )
    assert (second.findings, second.float_int8_nodes) == ((), 0)


def test_the_terminal_says_the_answer_first_in_80_columns(run, found):
    told = run[1].stderr
    lines = told.splitlines()
    assert max(map(len, lines)) <= 80
    flat = re.sub(r"\s+", " ", told)
    places = [
        flat.index(text)
        for text in (
            "int8.onnx p50 ",
            "int8.onnx is ",
            "finding: int8.onnx: 2 of 3 int8 nodes ran in float",
            "batch threads model",
            "latency p50 ",
            "operator type in",
            "hints",
            "wrote page.html",
        )
    ]
    assert places == sorted(places)
    assert re.search(r"int8\.onnx is \d\.\d+ times slower than float\.onnx \(", flat)
    assert "more, " in flat, "--top 3 leaves some out, and says so"


def test_csv_has_a_line_per_operator(run, found):
    rows = list(csv.DictReader(io.StringIO((run[0] / "ops.csv").read_text())))
    assert len(rows) == sum(len(model.operators) for model in found.models)
    conv = next(row for row in rows if row["model"] == "int8.onnx" and row["node"] == "conv")
    assert int(conv["macs"]) == 56 * 56 * 16 * 16 * 9
    assert conv["precision"] == "float32"


def test_the_page_says_the_same(run, found):
    page = (run[0] / "page.html").read_text()
    text = _text(page)
    for model in found.models:
        assert profile_story.answer(found, model).split(",")[0] in text
        assert all(op.op_type in text for op in model.operators)
        assert all(finding.what in text for finding in model.findings)
    assert all(told in text for told in profile_story.compared(found))
    assert page == profile_html.render(found), "the same profile gives the same bytes"


def _text(page):
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.texts = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append((tag, dict(attrs)))

        def handle_data(self, data):
            self.texts.append(data)

    reader = Reader()
    reader.feed(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "iframe", "img", "object"}
    assert not any(key.startswith("on") for _, attrs in reader.tags for key in attrs)
    assert all(attrs.get("href", "data:,") == "data:," for tag, attrs in reader.tags if tag == "link")
    return " ".join(" ".join(reader.texts).split())


# -- unusable input -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    tiny_onnx(folder / "net.onnx")
    two_inputs(folder / "two.onnx")
    (folder / "junk.onnx").write_bytes(b"junk")
    evil = onnx.load(folder / "net.onnx")
    evil.graph.node[0].op_type = "\x1b[31m\x1b]0;x\x07"
    onnx.save(evil, folder / "evil.onnx")
    return folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.onnx"], r"gone\.onnx: no such file"),
        (["junk.onnx"], r"junk\.onnx: is no valid ONNX model"),
        (["net.onnx", "--target", "locl"], r"no target is called 'locl'\n +help: did you mean 'local'"),
        (["net.onnx", "--device", "pi4"], r"'pi4' must be local or ssh://\[user@\]host\[:port\]"),
        (["net.onnx", "--batch", "1,x"], r"--batch '1,x' must be numbers with commas between them"),
        (["net.onnx", "--batch", "0"], r"--batch 0 must be at least 1"),
        (["net.onnx", "--threads", "5000"], r"--threads 5000 must be at least 1 and at most 1024"),
        (["net.onnx", "--seconds", "0"], r"--seconds 0 must be at least 0\.1"),
        (["net.onnx", "--input", "z=1x2"], r"no model has an input 'z'"),
        (["net.onnx", "--input", "x=1x2"], r"input 'x' takes the shape batchx3x4x4 \(float32\), and 1x2 was given"),
        (["two.onnx"], r"two\.onnx: input 'ids' has the shape batchxlength.*\n.*--input ids=1x128"),
        (["net.onnx", "--csv", "no/ops.csv"], r"no/ops\.csv cannot be written: .*no is no folder"),
        (["net.onnx", "--html", "."], r"\. is a folder"),
        (["net.onnx", "--csv", "a.txt", "--html", "./a.txt"], r"a\.txt is written twice, and would be overwritten"),
        (
            ["net.onnx", "--against", "two.onnx", "--csv", "two.onnx"],
            r"two\.onnx is a model that is measured, and would",
        ),
        (["evil.onnx"], r"No Op registered for �\[31m�\]0;x� with"),
    ],
)
def test_one_clear_fault_and_nothing_written(files, arguments, told):
    before = set(files.iterdir())
    done = attar("profile", *arguments, cwd=files)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(told, done.stderr), done.stderr
    assert done.stdout == ""
    assert set(files.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_as_ctrl_c_does(files, tmp_path, number):
    command = [sys.executable, "-m", "pipeline.cli", "profile", "net.onnx", "--seconds", "60"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=files, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while (line := process.stderr.readline()) and not line.startswith("measuring"):
            pass
        assert list(tmp_path.glob("attar-*"))
        process.send_signal(number)
        assert "interrupted" in process.stderr.read()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


# -- what cannot be had from this machine -----------------------------------------------------------------------------


def number(value, low=None, high=None, samples=600):
    return Number(value=value, low=low or value, high=high or value, samples=samples, instrument="wall clock")


EVIL = "<script>alert(1)</script>\x1b[31m\u202e=cmd()"


def made(name="a.onnx", ratio=None, **more):
    op = OperatorRow(
        name=name + "/conv",
        node="",
        op_type="Conv",
        provider="CUDAExecutionProvider",
        precision="float32",
        us=12.0,
        us_low=11.0,
        us_high=13.0,
        profiled_us=14.0,
        share=0.75,
        macs=1_000_000,
        bytes=5000,
        gmacs_per_s=83.3,
        macs_per_byte=200.0,
    )
    values = {
        "name": name,
        "file": name,
        "sha256": "0" * 64,
        "size_bytes": 10**6,
        "opset": 20,
        "ir_version": 10,
        "inputs": {"x": (1, 3, 8, 8)},
        "numbers": {"latency_p50_ms": number(0.5, 0.49, 0.51), "size_mb": number(1.0)},
        "missing": {"latency_p99_ms": "too few samples (40; p99 takes 299)"},
        "ratio": ratio,
        "operators": (op, op.model_copy(update={"provider": "CPUExecutionProvider", "share": 0.25})),
        "profiler": ProfilerRow(runs=50, run_us=800.0, added_us=2.0),
        "placement": {"CUDAExecutionProvider": 1, "CPUExecutionProvider": 1},
        "assignment": {"CUDAExecutionProvider": 4, "CPUExecutionProvider": 1},
        "findings": (FindingRow(kind="fallback", what="1 of 5 nodes did not run on CUDA", nodes=(name,) * 20),),
        "hints": (HintRow(kind="copies", what="75 % of the time", do="do this", share=0.75, nodes=(name,)),),
    }
    return ModelRow(**{**values, **more})


def shown_profile(*models):
    return Profile(
        attar="0",
        target="board",
        summary="a board",
        device="ssh://pi@board",
        provider="CUDAExecutionProvider",
        confidence=0.95,
        batch=1,
        threads=1,
        models=models,
        sweeps=(
            SweepRow(
                batch=8,
                threads=2,
                latency_p50_ms={models[0].name: None},
                throughput_per_s={models[0].name: None},
            ),
        ),
        notes=("the machine was busy",),
        environment={"device": EVIL},
        settings={},
        seconds=3.0,
    )


def printed(found, width=80, top=10):
    console = Console(width=width, file=io.StringIO(), color_system=None, highlight=False)
    console.print(profile_terminal.render(found, top))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (number(2.5, 2.4, 2.6, 12), "a.onnx is 2.50 times faster than b.onnx (2.40 to 2.60)"),
        (number(0.5, 0.48, 0.52, 12), "a.onnx is 2.00 times slower than b.onnx (1.92 to 2.08)"),
        (number(1.01, 0.97, 1.05, 12), "a.onnx and b.onnx: no difference shown (ratio 1.010, 0.970 to 1.050)"),
        (None, "a.onnx and b.onnx: too few blocks to compare"),
    ],
)
def test_a_difference_is_claimed_only_where_it_is_shown(ratio, told):
    found = shown_profile(made(), made("b.onnx", ratio))
    assert profile_story.compared(found) == [told]
    assert told in re.sub(r"\s+", " ", printed(found))


def test_what_is_missing_says_why():
    text = re.sub(r"\s+", " ", printed(shown_profile(made())))
    assert "latency p99 - too few samples (40; p99 takes 299)" in text
    assert "8 2 - too few samples -" in text
    assert "note: the machine was busy" in text
    assert "2 operators: 1 on CUDAExecutionProvider, 1 on CPUExecutionProvider; 5 nodes before fusion: 4 on" in text
    assert "which made a run 1.60 times as long; 2.0 µs that it added are taken off each" in text


def test_a_sample_too_small_for_a_percentile(tmp_path):
    device = FakeDevice(latency_ms={"net.onnx": [1.0, 1.1, 1.2, 1.3] * 10})
    found = profile(tiny_onnx(tmp_path / "net.onnx"), device=device)
    (model,) = found.models
    assert "latency_p90_ms" in model.numbers
    assert "latency_p95_ms" not in model.numbers
    assert model.missing["latency_p95_ms"] == "too few samples (40; p95 takes 59)"
    assert model.missing["latency_p99_ms"] == "too few samples (40; p99 takes 299)"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_from_files_are_only_text(width):
    found = shown_profile(made(EVIL), made("b" * 150, number(2.0, 1.9, 2.1)))
    text = printed(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "\u202e" not in text
    page = profile_html.render(found)
    assert "<script" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    _text(page)
    rows = list(csv.reader(io.StringIO(csv_text(shown_profile(made("=cmd()"))))))
    assert rows[1][0] == "'=cmd()"


def test_the_same_file_twice_and_files_of_one_name(tmp_path):
    (tmp_path / "other").mkdir()
    path, twin = tiny_onnx(tmp_path / "net.onnx"), tiny_onnx(tmp_path / "other/net.onnx", width=8)
    names = [m.name for m in profile(path, against=[path], device=FakeDevice()).models]
    assert names == ["net.onnx", "net.onnx (2)"]
    names = [m.name for m in profile(path, against=[twin], device=FakeDevice()).models]
    assert names == [str(path), str(twin)]


def test_another_machine_than_the_target_is_said(tmp_path):
    found = profile(tiny_onnx(tmp_path / "net.onnx"), "arm64", device=FakeDevice())
    assert found.notes[0].startswith("arm64 is aarch64 hardware, and this is fake")


def test_json_is_json(found):
    assert json.loads(found.model_dump_json())["version"] == 1


def test_words_for_what_has_no_name_no_width_and_no_plural():
    row = made(numbers={"latency_p50_ms": number(0.5), "size_mb": number(1.0, samples=1)}, placement={"CPU": 1})
    row = row.model_copy(
        update={"operators": (row.operators[0].model_copy(update={"name": ""}),), "assignment": {"CPU": 1}}
    )
    assert profile_story.called(row.operators[0]) == "(without a name)"
    assert profile_story.placed(row) == "1 operator (1 node before fusion), all on CPU"
    shown = {metric: interval for metric, _, interval, _ in profile_story.measured(row)}
    assert (shown["latency p50"], shown["size"]) == ("0.500 to 0.500", "")
