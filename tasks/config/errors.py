"""Turn validation errors of params.yaml into lines a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import EffaceError

if TYPE_CHECKING:
    from pydantic import ValidationError


_WORDS = {"integer": "an integer", "number": "a number", "string": "a text", "boolean": "true or false"}
_BOUNDS = (
    ("exclusiveMinimum", "above"),
    ("minimum", "at least"),
    ("exclusiveMaximum", "below"),
    ("maximum", "at most"),
)


class ParamsError(EffaceError):
    """Mistakes in params.yaml, one line each."""

    def __init__(self, path: str | Path, mistakes: Sequence[str]) -> None:
        self.mistakes = list(dict.fromkeys(mistakes))
        super().__init__("\n".join(f"{path}: {mistake}" for mistake in self.mistakes))


def explain(
    error: ValidationError, schema: dict[str, Any], profile: str, overrides: dict[str, Any]
) -> list[str]:
    """One line per mistake: the key as it stands in the file, its value, what is allowed.

    Args:
        error: what pydantic found in the merged sections.
        schema: JSON schema of the whole file.
        profile: name of the profile that was merged in.
        overrides: its values, to tell whether a value came from the profile or from the section.
    """
    return [_line(item, schema, profile, overrides) for item in error.errors(include_url=False)]


def _line(item: Any, schema: dict[str, Any], profile: str, overrides: dict[str, Any]) -> str:
    where = [str(part) for part in item["loc"] if part != "[key]"]
    key = _key_in_file(where, profile, overrides)
    kind, value = item["type"], item["input"]
    if item["loc"] and item["loc"][-1] == "[key]":  # a mapping with a name it may not have
        return f"{key} is unknown; allowed: {_names(_find(schema, where[:-1], schema))}"
    if kind == "extra_forbidden":
        return f"{key} is {_short(value)}: unknown key; allowed: {_names(_find(schema, where[:-1], schema))}"
    allowed = describe(_find(schema, where, schema))
    if kind == "missing":
        return f"{key} is missing: expected {allowed}"
    if kind == "value_error" and not allowed.startswith("one of"):
        return ".".join([*where, str(item["ctx"]["error"])])
    return f"{key} is {_short(value)}: expected {allowed}"


def _key_in_file(where: list[str], profile: str, overrides: dict[str, Any]) -> str:
    tree: Any = overrides
    for part in where:
        if not isinstance(tree, dict) or part not in tree:
            return ".".join(where)
        tree = tree[part]
    return ".".join(["profiles", profile, *where]) if where else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def _find(node: dict[str, Any], where: Sequence[str], schema: dict[str, Any]) -> dict[str, Any]:
    """The part of the schema that rules over a key; {} where there is none."""
    node = _resolve(node, schema)
    for part in where:
        options = [_resolve(option, schema) for option in node.get("anyOf", [])]
        node = next((option for option in options if part in option.get("properties", {})), node)
        if part in node.get("properties", {}):
            node = node["properties"][part]
        elif "additionalProperties" in node and isinstance(node["additionalProperties"], dict):
            node = node["additionalProperties"]
        elif "items" in node:
            node = node["items"]
        elif "anyOf" not in node:  # pydantic names the branch of a union; the union itself is what we want
            return {}
        node = _resolve(node, schema)
    return node


def _names(node: dict[str, Any]) -> str:
    if "properties" in node:
        return ", ".join(node["properties"])
    return ", ".join(map(str, node.get("propertyNames", {}).get("enum", []))) or "none"


def describe(node: dict[str, Any]) -> str:
    """What a schema allows, in words: "a number above 0 and at most 1, or null"."""
    if "anyOf" in node:
        return ", or ".join(describe(option) for option in node["anyOf"])
    if "const" in node:
        return f"one of: {node['const']}"
    kind = node.get("type")
    if kind == "array":
        return f"a list, each {describe(node['items'])}"
    if kind == "object":
        return f"keys: {_names(node)}" if "properties" in node else "a mapping"
    return in_words(node)


def in_words(schema: dict[str, Any]) -> str:
    """What a schema allows one value to be: "a number above 0 and at most 1"."""
    if "enum" in schema:
        return f"one of: {', '.join(map(str, schema['enum']))}"
    kind = str(schema.get("type"))
    bounds = [f"{text} {schema[name]:g}" for name, text in _BOUNDS if name in schema]
    return " ".join([_WORDS.get(kind, kind), " and ".join(bounds)]).strip()
