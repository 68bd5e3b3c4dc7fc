"""JSON documents against JSON Schemas: the part of draft 2020-12 that docs/schemas is written in, and no keyword beside it."""

from __future__ import annotations

from typing import Any

_NOTES = {"$schema", "$id", "$defs", "title", "description", "default"}
_KNOWN = {"$ref", "anyOf", "type", "const", "enum", "properties", "required", "additionalProperties", "items"}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def violations(value: Any, schema: dict[str, Any]) -> list[str]:
    """What a document does that its schema forbids; a line each, with the place. Empty where it keeps to it."""
    return list(_check(value, schema, schema, "$"))


def _check(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    unknown = schema.keys() - _NOTES - _KNOWN
    assert not unknown, f"{at}: this file does not know {unknown}"
    found: list[str] = []
    if "$ref" in schema:
        found += _check(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "anyOf" in schema:
        each = [_check(value, one, root, at) for one in schema["anyOf"]]
        found += [] if any(not one for one in each) else [f"{at}: none of anyOf: {each}"]
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, kind) for kind in kinds):
            return [*found, f"{at}: {value!r:.80} is not {' or '.join(kinds)}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: {value!r:.80} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r:.80} is none of {schema['enum']}")
    if isinstance(value, dict):
        found += _object(value, schema, root, at)
    if isinstance(value, list) and "items" in schema:
        found += [line for n, item in enumerate(value) for line in _check(item, schema["items"], root, f"{at}[{n}]")]
    return found


def _object(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    known = schema.get("properties", {})
    found = [f"{at}: lacks {name}" for name in schema.get("required", []) if name not in value]
    for name, item in value.items():
        if name in known:
            found += _check(item, known[name], root, f"{at}.{name}")
        elif schema.get("additionalProperties", True) is False:
            found.append(f"{at}: {name} is not in the schema")
        elif isinstance(schema.get("additionalProperties"), dict):
            found += _check(item, schema["additionalProperties"], root, f"{at}.{name}")
    return found


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
