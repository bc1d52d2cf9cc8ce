"""The command: one clear fault for each kind of bad input, the exit code of the design, nothing left behind.

Most run it in this process; those that say `attar_process` start the real one.
"""

import json
import re
from importlib.metadata import version

import numpy as np
import pytest
from tiny_run import TINY, attar, attar_process, write_tiny


def _left(folder):
    return {p.name for p in folder.iterdir()} - {"tiny.npz", "tiny.yaml", "quick.yaml"}


def _fault(folder, *arguments, command="check", by=attar):
    done = by(command, *arguments, cwd=folder)
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_the_version(tmp_path):
    done = attar("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"attar {version('attar')}\n")


def test_five_faults_at_once_with_lines(tmp_path):
    text = TINY.replace("source: tiny.npz", "sourse: tiny.npz")
    text = text.replace("keep: 0.75", "keep: 1.3")
    text = text.replace("- distill: {epochs: 4, batch_size: 16}", "- destill: {epochs: 4, batch_size: 16}")
    text = text.replace("size_mb: 1.0", "size_mb: -1")
    text = text.replace("use: quick.yaml", "use: locl")
    write_tiny(tmp_path, text)
    told = _fault(tmp_path, "tiny.yaml", by=attar_process)
    lines = dict(enumerate(text.splitlines(), 1))
    places = {int(n) for n in re.findall(r"^tiny\.yaml:(\d+): ", told, re.M)}
    assert {n for n, line in lines.items() if re.search(r"sourse|1\.3|destill|-1|locl", line)} == places
    assert "data.sourse: unknown key" in told
    assert "did you mean 'source'?" in told
    assert "stages[1].prune.keep: 1.3 must be above 0 and at most 1" in told
    assert "did you mean 'distill'?" in told
    assert "did you mean 'local'" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("epochs: 8", "epochs: three"), r"model\.train\.epochs: 'three'"),
        (("[0.25]", "[0.25"), r"tiny\.yaml:\d+: is not YAML"),
        (("tiny.npz", "tyni.npz"), r"data\.source: .*no such file"),
        (("tiny.npz", "mnist"), r"data\.source: .*mnist"),
        (("tiny_cnn", "tiny_cn"), r"did you mean 'tiny_cnn'"),
        (("{classes: 4}", "{classses: 4}"), r"classses"),
        (("  - export: {samples: 8}\n", "  - export: {}\n  - prune: {keep: 0.5}\n"), r"prune takes a torch network"),
        (("keep: 0.75}", 'keep: 0.75, exclude: ["convv*"]}'), r"convv\*"),
        (("version: 1", "version: 2"), r"version: 2 must be"),
        (("{samples: 8}", "{opset: 25}"), r"tiny\.yaml:\d+: stages\[4\]\.export\.opset: 25 is above the opset 21"),
        (
            ("{samples: 32, pays: false, qat: null}", "{engine: neural_compressor, calibration: percentile}"),
            r"stages\[3\]\.quantize: neural_compressor has no percentile calibration",
        ),
        (
            ("{keep: 1.0}", "{keep: 1.0, name: float teacher}"),
            r"students\[0\]: a student cannot be called 'float teacher'",
        ),
        (("epochs: 4,", "soft_weight: 0, label_weight: 0,"), r"stages\[2\]\.distill: there is nothing to learn from"),
        (
            ("budget: {acc", "name: report.html\n    budget: {acc"),
            r"'report\.html' is the name of a file that every run",
        ),
        (("budget: {acc", "name: ../up\n    budget: {acc"), r"targets\[0\]\.name: '\.\./up'"),
    ],
)
def test_a_fault_names_its_place(tmp_path, change, told):
    text = TINY.replace(*change, 1)
    assert text != TINY
    write_tiny(tmp_path, text)
    assert re.search(told, _fault(tmp_path, "tiny.yaml"))
    assert not _left(tmp_path)


def test_a_missing_recipe_offers_its_neighbours(tiny, tmp_path):
    told = _fault(tmp_path, "tiny.yml")
    assert "tiny.yml: no such file" in told
    assert "'tiny.yaml'" in told


def test_set_is_checked_like_the_file(tiny, tmp_path):
    assert "stages[1].prune.keep: 7" in _fault(tmp_path, "tiny.yaml", "--set", "stages.1.prune.keep=7")
    assert "KEY=VALUE" in _fault(tmp_path, "tiny.yaml", "--set", "nonsense")


def _data(folder, **changes):
    with np.load(folder / "tiny.npz") as arrays:
        now = dict(arrays)
    now.update({name: change(now[name]) for name, change in changes.items()})
    np.savez(folder / "tiny.npz", **now)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x_train": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x.astype(np.float32))}, "NaN"),
        ({"x_train": lambda x: x[:0], "y_train": lambda y: y[:0]}, "empty|no examples"),
        ({"y_train": lambda y: y - 1}, "label"),
        ({"y_train": lambda y: y[:-1]}, "240.*239|239.*240"),
    ],
)
def test_unusable_data_stops_before_training(tiny, tmp_path, changes, told):
    _data(tmp_path, **changes)
    assert re.search(told, _fault(tmp_path, "tiny.yaml", command="run"))
    assert _left(tmp_path) <= {".attar"}
    assert not list((tmp_path / ".attar/store").glob("steps/*"))


def test_a_model_whose_output_does_not_fit_the_task(tiny, tmp_path):
    told = _fault(tmp_path, "tiny.yaml", "--set", "model.args.classes=7", command="run")
    assert re.search(r"^tiny\.yaml:6: model: the model gives 7 outputs, the data has 4 classes", told, re.M)


def test_weights_that_do_not_fit_and_pickles(tiny, tmp_path):
    import torch

    from stages.testing import tiny_cnn

    torch.save(tiny_cnn(), tmp_path / "pickle.pt")
    told = _fault(tmp_path, "tiny.yaml", "--set", "model.weights=pickle.pt", command="run")
    assert "pickle" in told
    assert "safetensors" in told
    torch.save(tiny_cnn(width=4).state_dict(), tmp_path / "other.pt")
    told = _fault(tmp_path, "tiny.yaml", "--set", "model.weights=other.pt", command="run")
    assert re.search(r"0\.weight.*\(8, 1, 3, 3\)|\[8, 1, 3, 3\]", told)


def test_new_check_and_schema(tmp_path):
    assert attar("new", "mine", cwd=tmp_path).returncode == 0
    done = attar("check", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "exists" in _fault(tmp_path, "mine", command="new")
    schema = json.loads(attar("schema", cwd=tmp_path).stdout)
    assert schema["properties"]["stages"]


def test_lists_and_shows(tmp_path):
    listed = attar("stages", cwd=tmp_path)
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in ("distill", "prune", "export", "quantize"))
    shown = attar("stages", "show", "distill", cwd=tmp_path).stdout
    assert all(told in shown for told in ("temperature", "kd, dkd, dist", "students[].keep", "number > 0 ≤ 1"))
    assert "to          budget" in attar("stages", "show", "prune", cwd=tmp_path).stdout
    assert "did you mean 'prune'?" in attar("stages", "show", "prun", cwd=tmp_path).stderr
    assert "local" in attar("targets", cwd=tmp_path).stdout
    assert "channel_multiple" in attar("targets", "show", "local", cwd=tmp_path).stdout
    assert "name: my-device" in attar("targets", "detect", cwd=tmp_path).stdout
    assert "attar targets" in attar("targets", "show", "locl", cwd=tmp_path).stderr
    assert "onnxruntime" in attar("doctor", cwd=tmp_path).stdout


def test_wrong_words_on_the_command_line_exit_2(tmp_path):
    for by in (attar_process, attar):
        assert by("run", cwd=tmp_path).returncode == 2
        assert by("fly", cwd=tmp_path).returncode == 2
        assert by("--help", cwd=tmp_path).returncode == 0


def test_a_profile_cannot_be_named_out_of_the_folder(tiny, tmp_path):
    (tmp_path / "quick.yaml").write_text("name: ../../escaped\nextends: local\n")
    assert "name: '../../escaped'" in _fault(tmp_path, "tiny.yaml")


def test_a_file_beside_the_recipe_does_not_stand_in_for_a_library(tiny, tmp_path):
    for name in ("torch", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong one')\n")
    done = attar_process("check", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "by"), [("check", attar), ("run", attar_process)])
def test_a_module_that_ends_the_program_is_a_fault(tiny, tmp_path, command, by):
    (tmp_path / "script.py").write_text("import sys\ndef net():\n    ...\nsys.exit(0)\n")
    model = "model={source: script:net, train: {epochs: 1}}"
    told = _fault(tmp_path, "tiny.yaml", "--set", model, command=command, by=by)
    assert "importing script failed: SystemExit" in told


def test_a_changed_file_that_arguments_name_is_noticed(tiny, tmp_path):
    (tmp_path / "mine.py").write_text("import numpy as np\ndef data(path):\n    ...\n")
    (tmp_path / "raw.bin").write_bytes(b"one")
    source = ("--set", "data={source: mine:data, args: {path: raw.bin}}")
    before = attar("plan", "tiny.yaml", *source, cwd=tmp_path).stdout
    (tmp_path / "raw.bin").write_bytes(b"two")
    after = attar("plan", "tiny.yaml", *source, cwd=tmp_path).stdout
    assert "teacher" in before
    assert before != after


def test_what_can_never_be_met_is_said_before_training(tiny, tmp_path):
    (tmp_path / "quick.yaml").write_text("name: quick\nextends: local\nmeter: {energy_s: 0}\n")
    told = _fault(tmp_path, "tiny.yaml", "--set", "targets.0.budget.energy_mj=1")
    assert "energy is not counted on quick: its meter.energy_s is 0" in told
    (tmp_path / "quick.yaml").write_text("name: quick\nextends: local\nruntime: {provider: CUDAExecutionProvider}\n")
    told = _fault(tmp_path, "tiny.yaml")
    assert "has no CUDAExecutionProvider here" in told
    assert "help: it has " in told
    (tmp_path / "quick.yaml").write_text("name: quick\nextends: local\ndevice: ssh://board\n")
    done = attar("check", "tiny.yaml", cwd=tmp_path)
    assert "note: quick is not looked at here: `attar run` reaches ssh://board first of all" in done.stderr
    (tmp_path / "quick.yaml").write_text("name: quick\nextends: local\nhas_any: [no_such_flag]\n")
    done = attar("check", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert "note: quick has no_such_flag, and this processor does not" in done.stderr


def test_set_takes_the_form_that_faults_show(tiny, tmp_path):
    told = _fault(tmp_path, "tiny.yaml", "--set", "stages[1].prune.keep=7")
    assert "stages[1].prune.keep: 7" in told
