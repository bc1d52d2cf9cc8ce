"""Digests: what changes them and what does not, and that looking at code never runs it."""

import sys
from pathlib import Path

import pytest

from pipeline import code, digests
from targets.errors import InputError

ROOT = Path(__file__).parents[2]


def _write(folder, **modules):
    """Modules by name, "__" for a dot; each raises when it is imported."""
    for name, text in modules.items():
        path = folder.joinpath(*name.split("__dot__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('imported')\n" + text, encoding="utf-8")


@pytest.fixture(autouse=True)
def _fresh():
    code.closure.cache_clear()


def test_values_digest_alike_whatever_the_order_of_keys():
    assert digests.of_json({"a": 1, "b": [1.5, None]}) == digests.of_json({"b": [1.5, None], "a": 1})
    assert digests.of_json({"a": 1}) != digests.of_json({"a": 1.0})
    assert digests.of_json({"a": True}) != digests.of_json({"a": 1})
    assert digests.of_json([1, 2]) != digests.of_json([2, 1])
    with pytest.raises(ValueError, match="JSON compliant"):
        digests.of_json(float("nan"))


def test_a_known_file_has_the_known_digest(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert digests.of_file(tmp_path / "abc").startswith("ba7816bf8f01cfea")  # FIPS 180-4, example B.1


def test_versions_are_read_and_absence_is_said():
    found = digests.of_libraries(["numpy", "no-such-library"])
    assert found["numpy"].split(".")[0].isdigit()
    assert found["no-such-library"] == "absent"


def test_modules_are_found_without_importing_them(tmp_path):
    _write(tmp_path, finders_a="", finders_b__dot____init__="", finders_b__dot__c="")
    assert code.locate("finders_a", tmp_path) == tmp_path / "finders_a.py"
    assert code.locate("finders_b", tmp_path) == tmp_path / "finders_b" / "__init__.py"
    assert code.locate("finders_b.c", tmp_path) == tmp_path / "finders_b" / "c.py"
    assert code.locate("stages.zoo") == ROOT / "stages" / "zoo.py"
    for absent in ("finders_z", "finders_b.z", "", "..finders_a", "finders_a/../finders_a", "stages.zoo.z", "zlib"):
        assert code.locate(absent, tmp_path) is None
    assert not any(name.startswith("finders_") for name in sys.modules)


def test_attar_is_found_from_any_folder(tmp_path):
    """An editable install is found by an import hook, not on `sys.path`."""
    import subprocess

    script = "from pipeline import code, digests; print(code.locate('stages.zoo'), digests.of_code('stages.zoo'))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, env={"PATH": ""}
    )
    path, digest = done.stdout.split()
    assert Path(path) == ROOT / "stages" / "zoo.py"
    assert digest == digests.of_code("stages.zoo")


def test_attars_own_packages_are_never_taken_from_beside_a_recipe(tmp_path):
    _write(tmp_path, stages__dot__zoo="")
    assert code.locate("stages.zoo", tmp_path) == ROOT / "stages" / "zoo.py"


def test_code_digest_follows_imports_of_the_same_author(tmp_path):
    _write(
        tmp_path,
        mine="import json, torch\nfrom helper import f\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import typed\nelse:\n    import untyped\n"
        "def late():\n    import later\n",
        helper="from pkg.a import x\nimport stages.zoo",
        later="",
        typed="",
        untyped="",
        unused="",
        pkg__dot____init__="",
        pkg__dot__a="from . import b\nfrom .sub import c",
        pkg__dot__b="",
        pkg__dot__other="",
        pkg__dot__sub__dot____init__="",
        pkg__dot__sub__dot__c="from ..b import *",
    )
    names = set(code.closure("mine", tmp_path))
    own = {"mine", "helper", "later", "untyped", "pkg", "pkg.a", "pkg.b", "pkg.sub", "pkg.sub.c"}
    assert own == {name for name in names if not name.startswith(("stages", "targets"))}
    assert {"stages.zoo", "targets.errors"} <= names


@pytest.mark.parametrize("changed", ["mine", "helper"])
def test_a_change_in_the_code_or_in_what_it_imports_changes_the_digest(tmp_path, changed):
    _write(tmp_path, mine="import helper", helper="", bystander="")
    before = digests.of_code("mine", tmp_path)
    _write(tmp_path, bystander="x = 1")
    assert digests.of_code("mine", tmp_path) == before
    _write(tmp_path, **{changed: "import helper\nx = 1"})
    assert digests.of_code("mine", tmp_path) != before


def test_a_package_reached_by_the_path_alone_follows_its_neighbours(tmp_path, monkeypatch):
    _write(tmp_path, neighbours_a="import neighbours_b", neighbours_b="")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(code.closure("neighbours_a")) == {"neighbours_a", "neighbours_b"}


def test_where_the_code_lies_does_not_matter(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        _write(folder, mine="import helper", helper="x = 1")
    assert digests.of_code("mine", tmp_path / "one") == digests.of_code("mine", tmp_path / "two")


def test_an_environment_beside_the_recipe_is_no_code_of_the_author(tmp_path, monkeypatch):
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    _write(tmp_path, mine="import venv_library")
    _write(packages, venv_library="")
    monkeypatch.syspath_prepend(packages)
    assert set(code.closure("mine", tmp_path)) == {"mine"}


def test_a_library_stands_for_its_version(monkeypatch):
    before = digests.of_code("sklearn.datasets")
    monkeypatch.setattr(digests, "_version", lambda name: "0")
    assert digests.of_code("sklearn.datasets") != before
    assert digests.of_code("sklearn.datasets") != digests.of_code("sklearn.svm")


def test_no_source_is_an_error_and_not_a_digest_of_nothing(tmp_path):
    with pytest.raises(InputError, match=r"module 'no_such_module' has no Python source in .* or on Python's path"):
        digests.of_code("no_such_module", tmp_path)
    with pytest.raises(InputError, match="module 'zlib' has no Python source"):
        digests.of_code("zlib")
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.py:1: is not Python: .*\n +1 \| def f\(:"):
        digests.of_code("broken", tmp_path)
    (tmp_path / "null.py").write_bytes(b"x = '\0'")
    with pytest.raises(InputError, match=r"null\.py.* is not Python"):
        digests.of_code("null", tmp_path)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("function", True),
        ("Klass", True),
        ("given", True),
        ("imported", True),
        ("join", True),
        ("in_try", True),
        ("in_except", True),
        ("in_else", True),
        ("local", False),
        ("functoin", False),
    ],
)
def test_functions_are_looked_up_in_the_text(tmp_path, name, there):
    text = """
import os.path as imported
from os.path import join
class Klass:
    local = 1
given = lambda: 0
def function():
    local = 2
try:
    def in_try(): ...
except ImportError:
    in_except: object = None
else:
    if True:
        pass
    else:
        with open(__file__) as in_else: ...
"""
    _write(tmp_path, looked=text.replace("with open(__file__) as in_else: ...", "in_else = 1"))
    faults = code.faults_of(f"looked:{name}", tmp_path)
    assert not faults if there else faults[0].what == f"'looked:{name}': looked has no function '{name}'"


def test_near_misses_of_functions_and_modules_are_named(tmp_path):
    _write(tmp_path, my_net="def build(): ...\ndef _build(): ...\n")
    assert code.faults_of("my_net:biuld", tmp_path)[0].help == "did you mean 'build'?"
    assert "'my_net:build'" in code.faults_of("mynet:build", tmp_path)[0].help
    assert code.faults_of("stages.zoo:resnet", tmp_path) == []
    _write(tmp_path, starred="from os.path import *\n", lazy="def __getattr__(name): ...\n")
    assert code.faults_of("starred:anything", tmp_path) == []
    assert code.faults_of("lazy:anything", tmp_path) == []
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    assert "is not Python" in code.faults_of("broken:f", tmp_path)[0].what


@pytest.mark.parametrize("source", ["a:b", "a.b.c:d_e", "münchen:größe"])
def test_the_form_of_a_function(source):
    assert code.is_function(source)


@pytest.mark.parametrize(
    "source", ["a", "a:", ":b", "a.b", "a:b.c", "a/b:c", "../a:b", "a..b:c", "C:\\x", "a:b()", "a:b\n"]
)
def test_what_is_no_function(source):
    assert not code.is_function(source)


def test_importable_is_undone(tmp_path):
    before = list(sys.path)
    with code.importable(tmp_path):
        assert sys.path[0] == str(tmp_path)
    assert sys.path == before
