"""The house rules that a reader could break without noticing: which room may import what, and what must not wake."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "targets")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# package -> where it may be imported, and why not elsewhere
ONLY_IN = {
    "torch": (("stages/", "pipeline/sources.py", "pipeline/data_sources.py"), "the base install has no torch"),
    "typer": (("pipeline/cli/",), "everything else is callable without a command line"),
    "rich": (
        ("pipeline/cli/", "pipeline/report/"),
        "only reports and the command know of terminals",
    ),
    "jinja2": (("pipeline/report/",), "only the report is a page"),
    "optuna": (("pipeline/optimizer.py",), "a vendor lives in its adapter, and is needed for a search alone"),
    "tritonclient": (("targets/servers/protocol_grpc.py",), "HTTP needs no library"),
    "model_signing": (("pipeline/signing.py", "pipeline/keys.py"), "a vendor lives in its adapter"),
    "cryptography": (("pipeline/signing.py", "pipeline/keys.py"), "keys are read where they are used"),
    "mlflow": (("pipeline/registries/mlflow.py",), "a vendor lives in its adapter"),
    "torch_pruning": (("stages/vendors/torch_pruning.py",), "a vendor lives in its adapter"),
    "neural_compressor": (("stages/vendors/neural_compressor.py",), "a vendor lives in its adapter"),
    "torchao": (("stages/vendors/neural_compressor.py",), "a vendor lives in its adapter"),
}
MAY_NOT = {
    "targets": ("stages", "pipeline"),
    "stages": ("pipeline",),
}


def _imports(path):
    """(module, at the top of the file and at run time?) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            yield name, node in tree.body


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    place = path.relative_to(ROOT).as_posix()
    for name, _ in _imports(path):
        top = name.partition(".")[0]
        assert top not in MAY_NOT.get(place.partition("/")[0], ()), f"{place} imports {name}: imports run one way"
        allowed, why = ONLY_IN.get(top, (None, ""))
        assert allowed is None or place.startswith(allowed), f"{place} imports {name}: {why}"


def test_no_pickle_eval_or_unsafe_yaml():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            assert call not in {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "joblib.load"}, path
            if call == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
            if call == "np.load":
                assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords), path


def _modules_after(code):
    script = f"import sys\n{code}\nprint(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_help_wakes_no_heavy_library():
    code = "from pipeline.cli import app\ntry:\n    app._guarded(['--help'])\nexcept SystemExit:\n    pass"
    woken = _modules_after(code)
    assert "typer" in woken
    assert not woken & {"torch", "onnx", "onnxruntime", "numpy", "pydantic", "sklearn", "yaml"}


def test_a_recipe_is_read_without_torch_or_onnx():
    woken = _modules_after("import pipeline.recipe, pipeline.plan, stages")
    assert not woken & {"torch", "onnxruntime", "onnx", "sklearn", "PIL"}


def test_help_takes_at_most_twice_as_long_as_importing_typer():
    """A ratio of best times, taken in turns, so that the speed of the machine cancels out."""
    attar, typer = [], []
    for _ in range(7):
        for times, command in (
            (typer, [sys.executable, "-c", "import typer"]),
            (attar, [sys.executable, "-m", "pipeline.cli", "--help"]),
        ):
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
            times.append(time.perf_counter() - start)
    assert min(attar) <= 2 * min(typer), f"{min(attar):.3f} s against {min(typer):.3f} s"
