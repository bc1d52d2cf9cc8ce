"""The wheel holds all that a user needs: packages, profiles, page templates and the command."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source") / "attar", tmp_path_factory.mktemp("dist")
    leave = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave)  # what an earlier build left behind must not get into the wheel
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("attar-*.whl"))


def test_everything_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("pipeline", "stages", "targets")
        for pattern in ("*.py", "*.yaml", "*.j2", "py.typed")
        for path in (ROOT / package).rglob(pattern)
    }
    assert wanted <= names
    assert not any(name.startswith("tests/") for name in names)


def test_the_installed_command_works_elsewhere(wheel, tmp_path):
    """In an environment of its own: attar comes from the wheel, its dependencies from this environment."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    python = home / "bin" / "python"
    mine = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    (site / "dependencies.pth").write_text(f"{mine}\n")  # no .pth of that folder is read: the editable attar stays out
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
    where = subprocess.run([python, "-c", "import targets; print(targets.__file__)"], **run).stdout
    assert where.startswith(str(site))
    command = [python, "-m", "pipeline.cli"]
    assert "x86_64_vnni" in subprocess.run([*command, "targets"], **run).stdout
    subprocess.run([*command, "new", "mine"], **run)
    assert "no faults" in subprocess.run([*command, "check", "mine.yaml"], **run).stderr
    points = next(site.glob("attar-*.dist-info")) / "entry_points.txt"
    assert "attar = pipeline.cli:main" in points.read_text(encoding="utf-8")
