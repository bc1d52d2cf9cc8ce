"""What tests of shipping share: the command run in this process, and artifacts made from one that a run left."""

import hashlib
import io
import json
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import typer
from onnx import numpy_helper

from pipeline import evidence, reference
from pipeline.cli.ship import ship
from targets import artifact
from targets.errors import AttarError


def attar_ship(*words):
    """Runs `attar ship`; its exit code, standard output and standard error."""
    return run((ship,), words)


def run(commands, words):
    """Runs a command line where these commands are all there is."""
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in commands:
        app.command()(command)
    out, err = io.StringIO(), io.StringIO()
    with patch.dict(os.environ, {"NO_COLOR": "1"}), redirect_stdout(out), redirect_stderr(err):
        try:
            code = app(list(map(str, words)), standalone_mode=False)
        except AttarError as error:
            code = error.exit_code
            err.write(str(error))
        except Exception as error:
            if not hasattr(error, "format_message"):  # else: wrong words on the command line
                raise
            code = 2
            err.write(error.format_message())
    return code or 0, out.getvalue(), err.getvalue()


def artifact_from(finished, into: Path, *, verdict="", bias=0.0, shift=0.0):
    """A copy of the artifact that the tiny recipe left, changed and with papers that hold.

    Args:
        verdict: another one than "met".
        bias: added to the model's answers, and to those that lie with it: another model that is in order.
        shift: added to the answers that lie with it alone: a model that does not answer as its papers say.
    """
    shutil.copytree(finished / "runs" / "tiny" / "quick", into)
    (into / evidence.SUMS).unlink(missing_ok=True)
    found = json.loads((into / "manifest.json").read_text(encoding="utf-8"))
    if bias:
        _biased(into / "model.onnx", bias)
    if bias or shift:
        kept = kept_in(into)
        outputs = answers(into, kept.inputs) if bias else kept.outputs
        changed = reference.Reference(kept.inputs, kept.labels, outputs + np.float32(shift), kept.baseline_right)
        reference.save(changed, into / reference.NAME)
    found["verdict"] = verdict or found["verdict"]
    found["model"] = {**asdict(artifact.load(into / "model.onnx")), "path": "model.onnx"}
    for name in found["files"]:
        found["files"][name] = hashlib.sha256((into / name).read_bytes()).hexdigest()
    (into / "manifest.json").write_text(json.dumps(found), encoding="utf-8")
    (into / evidence.SUMS).write_bytes(evidence.sums(into))
    assert evidence.verified(into) == ()
    return into


def kept_in(folder):
    """The reference that lies with an artifact."""
    path = folder / reference.NAME
    return reference.parse(path.read_bytes(), path)


def answers(folder, inputs):
    """What the model in a folder answers in onnxruntime, one example at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: inputs[i : i + 1]})[0] for i in range(len(inputs))])


def _biased(path, bias):
    model = onnx.load(path)
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["unbiased" if name == output.name else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.float32([bias]), "bias"))
    model.graph.node.append(onnx.helper.make_node("Add", ["unbiased", "bias"], [output.name]))
    onnx.save(model, path)
