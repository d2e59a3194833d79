"""The schema of a config as JSON Schema, with which editors complete and check what is written."""

from __future__ import annotations

import json
from typing import Any

from gptcli.config.schema import Settings

SCHEMA_FILE = "gptcli.schema.json"
"""What a config of `gptcli config init` names in its first line: a file beside it."""

# The last one that all editors know.
DIALECT = "http://json-schema.org/draft-07/schema#"

# Numbers as our reader takes them and others do not: 1_000_000 is text by YAML 1.2, 1e-4 by YAML 1.1.
_INTEGER = r"^[-+]?[0-9]+(_[0-9]+)+$"
_NUMBER = r"^[-+]?[0-9]+(_[0-9]+)*(\.[0-9]*)?([eE][-+]?[0-9]+)?$"
_WRITTEN = {"integer": _INTEGER, "number": _NUMBER}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file.

    It takes all that `load_settings` takes from a file. That takes less: settings that exclude each
    other, for one, are beyond a schema.
    """
    schema = Settings.model_json_schema()
    definitions = schema.pop("$defs")
    properties = {name: _simplified(value, definitions) for name, value in schema["properties"].items()}
    for name, section in properties.items():
        if section.get("type") == "object":
            # One whose settings are all commented out is empty.
            section["type"] = ["object", "null"]
        short_form = _short_form(name, properties)
        if short_form:
            properties[name] = {"description": section["description"], "anyOf": [short_form, section]}
    return {
        "$schema": DIALECT,
        "title": "A config of gptcli",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def schema_text() -> str:
    """Return the JSON Schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _short_form(name: str, properties: dict[str, Any]) -> dict[str, Any] | None:
    """Return what may stand for a section: the size of a model, the name of a tokenizer."""
    key = {"model": "size", "tokenizer": "name"}.get(name)
    if key is None:
        return None
    text: dict[str, Any] = next(
        choice for choice in properties[name]["properties"][key]["anyOf"] if choice["type"] == "string"
    )
    return text


def _simplified(node: Any, definitions: dict[str, Any]) -> Any:
    """Return a part of pydantic's schema with its references filled in and without generated titles."""
    if isinstance(node, list):
        return [_simplified(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    if reference := node.pop("$ref", None):
        node = definitions[reference.rpartition("/")[2]] | node
    if "properties" in node:
        node["properties"] = {
            key: _simplified(value, definitions) for key, value in node["properties"].items()
        }
        # The defaults stand at the settings; this one would be all of them at once.
        node.pop("default", None)
        node["description"] = " ".join(node["description"].split())
    elif isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _simplified(node["additionalProperties"], definitions)
    for key in ("anyOf", "items"):
        if key in node:
            node[key] = _simplified(node[key], definitions)
    node.pop("title", None)
    if node.get("type") in _WRITTEN:
        node["pattern"] = _WRITTEN[node["type"]]
        node["type"] = [node["type"], "string"]
    return node
