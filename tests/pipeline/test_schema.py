"""The schema: kept in docs/, the same as what the types say, and right about real recipes."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.recipe import TEMPLATE
from pipeline.schema import schema, schema_text
from stages import STAGES

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SAMPLE = yaml.safe_load(TEMPLATE.format(name="sample"))

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
_KNOWN = {
    *("$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum"),
    *("exclusiveMaximum", "exclusiveMinimum", "items", "maxLength", "maximum", "minItems", "minimum", "oneOf"),
    *("pattern", "properties", "required", "title", "type"),
}


def _fits(value, rule, whole):
    """Whether a value fits a schema: the words of JSON Schema that ours uses, after its draft 2020-12."""
    assert set(rule) <= _KNOWN, f"a word that this test does not know: {set(rule) - _KNOWN}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    tests = {
        "$ref": lambda r: _fits(value, whole["$defs"][r.removeprefix("#/$defs/")], whole),
        "type": lambda t: isinstance(value, _TYPES[t]) and (t == "boolean" or not isinstance(value, bool)),
        "const": lambda c: value == c,
        "enum": lambda e: value in e,
        "anyOf": lambda arms: any(_fits(value, arm, whole) for arm in arms),
        "oneOf": lambda arms: sum(_fits(value, arm, whole) for arm in arms) == 1,
        "minimum": lambda m: not number or value >= m,
        "maximum": lambda m: not number or value <= m,
        "exclusiveMinimum": lambda m: not number or value > m,
        "exclusiveMaximum": lambda m: not number or value < m,
        "pattern": lambda p: not isinstance(value, str) or re.search(p, value),
        "maxLength": lambda m: not isinstance(value, str) or len(value) <= m,
        "minItems": lambda m: not isinstance(value, list) or len(value) >= m,
        "items": lambda r: not isinstance(value, list) or all(_fits(item, r, whole) for item in value),
        "required": lambda names: not isinstance(value, dict) or set(names) <= set(value),
        "properties": lambda p: (
            not isinstance(value, dict) or all(_fits(value[k], r, whole) for k, r in p.items() if k in value)
        ),
        "additionalProperties": lambda r: (
            not isinstance(value, dict)
            or all(r and (r is True or _fits(value[k], r, whole)) for k in value if k not in rule.get("properties", {}))
        ),
    }
    return all(test(rule[word]) for word, test in tests.items() if word in rule)


def _with(**changes):
    return {**SAMPLE, **changes}


def test_the_kept_schema_is_the_generated_one():
    kept = (ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8")
    assert kept == schema_text(), "run: attar schema > docs/recipe.schema.json"


def test_no_key_is_unknown_and_every_reference_leads_somewhere():
    whole = json.loads(schema_text())
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    references = set(re.findall(r'"#/\$defs/(\w+)"', schema_text()))
    assert references == set(whole["$defs"])
    for name, rule in [("whole", whole), *whole["$defs"].items()]:
        if rule.get("type") == "object":
            assert rule["additionalProperties"] is False, name


def test_every_stage_has_its_alternative_with_its_settings():
    alternatives = schema()["$defs"]["StageCall"]["oneOf"]
    assert [a["title"] for a in alternatives] == list(STAGES)
    for alternative, stage in zip(alternatives, STAGES.values(), strict=True):
        assert alternative["description"] == stage.summary
        settings = schema()["$defs"][stage.Config.__name__]["properties"]
        assert list(settings) == list(stage.Config.model_fields)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_fit(path):
    assert _fits(yaml.safe_load(path.read_text(encoding="utf-8")), schema(), schema())


@pytest.mark.parametrize(
    "recipe",
    [
        SAMPLE,
        _with(stages=[{"export": None}]),
        _with(stages=[{"prune": {"keep": 0.5}}, {"export": {"opset": 18}}]),
        _with(model={"source": "net.onnx"}, stages=[]),
        _with(targets=[{"use": "local", "name": "a", "budget": {"size_mb": None}}]),
        _with(data={"source": "a:b", "args": {"deep": [{"er": None}]}, "mean": [0.1, 0.2, 0.3]}),
    ],
)
def test_sound_recipes_fit(recipe):
    assert _fits(recipe, schema(), schema())


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        _with(version=2),
        _with(sede=1),
        _with(name="a/b"),
        _with(targets=[]),
        _with(data={"sourse": "digits"}),
        _with(data={"source": "digits", "std": [0]}),
        _with(stages=[{"destill": {}}]),
        _with(stages=[{"prune": {"keep": 1.3}}]),
        _with(stages=[{"prune": {"kep": 0.5}}]),
        _with(stages=[{"prune": {"keep": 0.5}, "export": {}}]),
        _with(stages={"export": {}}),
        _with(targets=[{"use": "local", "budget": {"size_mb": -1}}]),
    ],
)
def test_faulty_recipes_do_not_fit(recipe):
    assert not _fits(recipe, schema(), schema())
