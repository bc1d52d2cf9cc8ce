"""The JSON Schema of recipes, with which editors complete and check them. Generated from the types; nothing by hand."""

from __future__ import annotations

import json
from typing import Any

from pipeline.recipe import Recipe
from stages import STAGES

__all__ = ["schema", "schema_text"]


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe. The list of stages is one alternative per row of `STAGES`."""
    whole = Recipe.model_json_schema()
    definitions = whole["$defs"]
    alternatives = []
    for stage in STAGES.values():
        config = stage.Config.model_json_schema()
        definitions |= config.pop("$defs", {})
        definitions[stage.Config.__name__] = config
        settings = {"anyOf": [{"$ref": f"#/$defs/{stage.Config.__name__}"}, {"type": "null"}]}
        alternatives.append(
            {
                "type": "object",
                "title": stage.name,
                "description": stage.summary,
                "properties": {stage.name: settings},
                "required": [stage.name],
                "additionalProperties": False,
            }
        )
    definitions["StageCall"] = {"description": "One stage and its settings.", "oneOf": alternatives}
    definitions.pop("Frozen", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "title": "attar recipe"}


def schema_text() -> str:
    """The schema as it lies in `docs/recipe.schema.json`, which `attar schema` prints."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
