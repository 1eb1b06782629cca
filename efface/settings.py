"""Settings that belong to one method: declared in the method's own file, readable without loading torch.

A method file declares its settings as a literal in the vocabulary of JSON Schema,

    SETTINGS = {"beta": {"type": "number", "exclusiveMinimum": 0}}

and whoever only wants to know what a file allows reads that literal from its text.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]
Settings = Mapping[str, Any]

_WORDS = {"integer": "an integer", "number": "a number", "string": "a text", "boolean": "true or false"}
_BOUNDS = (
    ("exclusiveMinimum", "above"),
    ("minimum", "at least"),
    ("exclusiveMaximum", "below"),
    ("maximum", "at most"),
)
_TYPES: dict[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "string": (str,)}


def declared(file: Path, name: str) -> Any:
    """The literal a Python file assigns to a name at its top level; None if it assigns none.

    Raises:
        ValueError: if what is assigned is no literal.
    """
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError as error:
                raise ValueError(
                    f"{file.name}: {name} must be a literal, readable without running the file ({error})"
                ) from error
    return None


def in_words(schema: Schema) -> str:
    """What a schema allows one value to be: "a number above 0 and at most 1"."""
    if "enum" in schema:
        return f"one of: {', '.join(map(str, schema['enum']))}"
    kind = str(schema.get("type"))
    bounds = [f"{text} {schema[name]:g}" for name, text in _BOUNDS if name in schema]
    return " ".join([_WORDS.get(kind, kind), " and ".join(bounds)]).strip()


def check(given: Settings, allowed: Mapping[str, Schema]) -> None:
    """Refuse settings that are missing, unknown or out of range.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    for name, schema in allowed.items():
        if name not in given:
            raise ValueError(f"settings.{name} is missing: expected {in_words(schema)}")
        if not _fits(given[name], schema):
            raise ValueError(f"settings.{name} is {given[name]!r}: expected {in_words(schema)}")
    for name, value in given.items():
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise ValueError(
                f"settings.{name} is {value!r}: unknown setting; this method's settings: {known}"
            )


def _fits(value: object, schema: Schema) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    if isinstance(value, bool) or not isinstance(value, _TYPES[schema["type"]]):
        return False
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0)
    return (
        abs(value) < float("inf")  # type: ignore[arg-type]  # a number, by its type
        and schema.get("minimum", value) <= value
        and value <= schema.get("maximum", value)
        and not value <= schema.get("exclusiveMinimum", float("-inf"))
        and not value >= schema.get("exclusiveMaximum", float("inf"))
    )
