"""Whether alternatives of a JSON schema exclude each other, as far as types and constants tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_STEPS = 16
MAX_ALTERNATIVES = 512

_TYPE_OF = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
_ALL_TYPES = frozenset(("null", "boolean", "number", "string", "array", "object"))


def are_disjoint(alternatives: Sequence[Any], root: object) -> bool:
    """Whether no value can be valid under two of the schemas; False when that cannot be told."""
    if len(alternatives) > MAX_ALTERNATIVES:
        return False
    schemas = [_followed(each, root) for each in alternatives]
    types = [_types_of(schema) for schema in schemas]
    if sum(map(len, types)) == len(frozenset().union(*types)):
        return True
    # those that are all objects may be told by what one property has to be
    if any(each != {"object"} for each in types):
        return _have_own_constants(schemas)
    names = set.intersection(*(set(schema.get("required", ())) for schema in schemas))
    return any(_have_own_constants([_property(schema, name, root) for schema in schemas]) for name in sorted(names))


def resolved(reference: str, root: object) -> Any:
    """The schema that a reference into `root`, such as "#/$defs/a", leads to; None if there is none."""
    current: Any = root
    for part in reference.removeprefix("#").split("/")[1:] if reference != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(current, Mapping) and name in current:
            current = current[name]
        elif isinstance(current, list) and name.isdigit() and int(name) < len(current):
            current = current[int(name)]
        else:
            return None
    is_pointer = reference == "#" or reference.startswith("#/")
    return current if is_pointer and isinstance(current, Mapping | bool) else None


def _followed(schema: object, root: object) -> Mapping[str, Any]:
    """The schema behind references; one that says more beside its reference, or is no object, says nothing here."""
    for _ in range(MAX_STEPS):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        if set(schema) - {"$ref", "title", "description", "default"}:
            return {}
        schema = resolved(str(schema["$ref"]), root)
    return schema if isinstance(schema, Mapping) and "$ref" not in schema else {}


def _types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that a value may have."""
    values = _constants_of(schema)
    if values is not None:
        return frozenset(_TYPE_OF.get(type(value), "null") for value in values)
    given = schema.get("type", list(_ALL_TYPES))
    names = given if isinstance(given, list) else [given]
    return frozenset("number" if name == "integer" else str(name) for name in names)


def _constants_of(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _have_own_constants(schemas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every schema allows only certain texts, and no two the same."""
    found = [_constants_of(schema) for schema in schemas]
    values = [value for each in found for value in (each or [None])]
    return all(isinstance(value, str) for value in values) and len(set(values)) == len(values)


def _property(schema: Mapping[str, Any], name: str, root: object) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return _followed(properties.get(name), root) if isinstance(properties, Mapping) else {}
