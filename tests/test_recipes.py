"""Every shipped recipe and profile is sound, and opens with the command that runs it."""

import re
from pathlib import Path

import pytest

from pipeline.plan import plan
from pipeline.recipe import load
from targets.errors import InputError
from targets.target import load as load_target
from targets.target import shipped

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SHARED = ROOT.parent / "shared" / "data"


def test_there_are_recipes():
    assert {"digits", "digits_tight", "digits_middle", "digits_loose", "article_cnn", "fashion_mnist"} <= {
        path.stem for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_sound(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# attar run recipes/{path.name}"), "a recipe opens with the command to run it"
    assert re.search(r"# Verdict earned: (met|missed|inconclusive)\b.+", text), "what verdict it earned, and where"
    if not SHARED.is_dir() and "shared/data" in text:
        with pytest.raises(InputError, match="no such"):
            load(path)
        return
    recipe, _ = load(path)
    assert recipe.name == path.stem
    assert plan(recipe, path.parent).goals


@pytest.mark.parametrize("name", shipped())
def test_a_profile_is_sound_and_gives_its_sources(name):
    target = load_target(name)
    assert target.name == name
    assert target.summary
    text = (ROOT / "targets" / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "#" in text, "each fact has its source in a comment"
