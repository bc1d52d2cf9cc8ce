"""What the documents show must run: Python blocks, recipes, commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def _name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=_name)
def test_python_blocks_run_one_after_the_other(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join(_blocks(page, "python")), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "yaml")], ids=_name)
def test_recipes_and_targets_shown_are_sound(page, tmp_path):
    from pipeline.recipe import load
    from targets.target import load as load_target

    for i, block in enumerate(_blocks(page, "yaml")):
        path = tmp_path / f"{i}.yaml"
        path.write_text(block, encoding="utf-8")
        if block.lstrip().startswith("version:"):
            load(path)
        elif "extends:" in block:
            load_target(path.name, tmp_path)


@pytest.fixture(scope="module")
def known():
    """The names of all commands, as the real one tells them."""
    helped = subprocess.check_output([sys.executable, "-m", "pipeline.cli", "--help"], text=True)
    return set(re.findall(r"^  ([a-z]+) ", helped, re.M))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_and_links_exist(page, known):
    text = page.read_text(encoding="utf-8")
    shown = set(re.findall(r"`attar ([a-z]+)", text))
    for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S):
        shown |= set(re.findall(r"^attar ([a-z]+)", block, re.M))
    assert shown <= known, f"{page.name} shows commands that do not exist: {shown - known}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for recipe in re.findall(r"\brecipes/\w+\.yaml", text):
        assert (ROOT / recipe).exists() or "pi.yaml" in recipe, f"{page.name} names {recipe}"


def test_the_architecture_page_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {p.name for package in ("pipeline", "stages", "targets") for p in (ROOT / package).rglob("*.py")}
    assert not {name for name in modules - {"__init__.py"} if name not in text}
