"""JSON schemas from outside to the form that the compiler enforces, checked place by place, so that errors name one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.engine.grammar.schema_overlap import are_disjoint, resolved

MAX_NODES = 20_000
MAX_DEPTH = 64
MAX_PATTERN_CHARS = 2_048
MAX_PATTERN_PROPERTIES = 32
MAX_MULTIPLE = 10_000
MAX_NOTES = 32
MAX_PATTERNS = 64  # that are named in errors
UNENFORCED_EXPRESSION = re.compile(r"\(\?(?:[=!]|<[=!])|\\[bB1-9]")
"""What looks around or back in an expression."""

TYPES = ("null", "boolean", "number", "integer", "string", "array", "object")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

# What holds schemas, by how.
_SCHEMA_KEYS = ("items", "additionalProperties", "additionalItems")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Keywords that say what is valid and that the compiler does not know. Any other word is a note to people.
_NOTHING_ASKED = {"uniqueItems": False, "unevaluatedProperties": True, "unevaluatedItems": True}
_UNENFORCED = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains"),
    *("minContains", "maxContains", "uniqueItems", "unevaluatedProperties", "unevaluatedItems", "propertyNames"),
    *("$dynamicRef", "$recursiveRef"),
)


@dataclass(slots=True)
class _Reading:
    """One schema on its way through; `notes` are the places of what is left out."""

    root: Any
    is_strict: bool
    where: str
    num_nodes: int = 0
    notes: list[str] = field(default_factory=list)
    patterns: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FormedSchema:
    """A schema as the compiler takes it, the places that are not enforced, and its (place, expression)s."""

    schema: dict[str, Any]
    unenforced: tuple[str, ...]
    patterns: tuple[tuple[str, str], ...]


def read_schema(source: str, *, is_strict: bool) -> FormedSchema:
    """Return the schema in JSON text `source` as the compiler takes it.

    Raises:
        InputError: it is no JSON, no schema, or larger than the limits; the text names the place.
        UnsupportedError: it is strict and asks for what cannot be enforced.
    """
    try:
        schema = json.loads(source, parse_constant=_refuse_constant)
    except ValueError as error:
        raise InputError(f"the JSON schema is no JSON: {error}") from None
    except RecursionError:
        raise InputError(f"the JSON schema nests deeper than {MAX_DEPTH} levels") from None
    return formed_schema(schema, is_strict=is_strict, where="the JSON schema")


def formed_schema(schema: object, *, is_strict: bool, where: str) -> FormedSchema:
    """As `read_schema`, for a schema that is read already; `where` names it in errors."""
    reading = _Reading(schema, is_strict, where)
    formed = _formed(schema, "#", reading, 0)
    if formed is False:
        raise InputError(f"{where} is false, which no answer can satisfy")
    return FormedSchema(
        {} if formed is True else formed, tuple(reading.notes[:MAX_NOTES]), tuple(reading.patterns[:MAX_PATTERNS])
    )


def _formed(schema: object, place: str, reading: _Reading, depth: int) -> Any:
    """One schema and those inside it, without what has no effect."""
    reading.num_nodes += 1
    if reading.num_nodes > MAX_NODES or depth > MAX_DEPTH:
        _refuse(reading, place, f"too much: a schema may hold {MAX_NODES} others and nest {MAX_DEPTH} levels")
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        _refuse(reading, place, f"{_shown(schema)} is no schema; give an object, true or false")
    formed: dict[str, Any] = {}
    for key, value in schema.items():
        inner = f"{place}/{_step(key)}"
        if key in _SCHEMA_KEYS and not isinstance(value, list):
            formed[key] = _formed(value, inner, reading, depth + 1)
        elif key in _SCHEMA_LISTS or key in _SCHEMA_KEYS:
            formed[key] = _formed_list(value, inner, reading, depth)
        elif key in _SCHEMA_MAPS:
            formed[key] = _formed_map(key, value, inner, reading, depth)
        elif key in _CHECKS:
            if _CHECKS[key](reading, inner, value):
                formed[key] = value
        elif key in _UNENFORCED and not (key in _NOTHING_ASKED and value is _NOTHING_ASKED[key]):
            _leave_out(reading, inner, "is not enforced,")
    _check_num_properties(formed, place, reading)
    if "oneOf" in formed:
        _settle_one_of(formed, place, reading)
    return formed


def _formed_list(value: object, place: str, reading: _Reading, depth: int) -> list[Any]:
    if not isinstance(value, list) or not value:
        _refuse(reading, place, f"{_shown(value)} is no list of schemas")
    return [_formed(item, f"{place}/{index}", reading, depth + 1) for index, item in enumerate(value)]


def _formed_map(key: str, value: object, place: str, reading: _Reading, depth: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        _refuse(reading, place, f"{_shown(value)} is no mapping of names to schemas")
    if key == "patternProperties":
        if len(value) > MAX_PATTERN_PROPERTIES:
            _refuse(reading, place, f"{len(value)} patterns are too many; at most {MAX_PATTERN_PROPERTIES} are allowed")
        for pattern in value:
            if not _check_pattern(reading, place, pattern):
                _refuse(reading, place, f"{_shown(pattern)} cannot tell properties; give a simpler expression")
    return {name: _formed(item, f"{place}/{_step(name)}", reading, depth + 1) for name, item in value.items()}


def _settle_one_of(formed: dict[str, Any], place: str, reading: _Reading) -> None:
    """Make "any of" of "one of": the same where alternatives exclude each other."""
    if not are_disjoint(formed["oneOf"], reading.root):
        _leave_out(
            reading,
            f"{place}/oneOf",
            "has alternatives that may overlap, and then one of them alone cannot be enforced; "
            "give them a common required property with different constants, or anyOf,",
        )
    alternatives = formed.pop("oneOf")
    if "anyOf" in formed:
        formed.setdefault("allOf", []).append({"anyOf": alternatives})
    else:
        formed["anyOf"] = alternatives


def _check_type(reading: _Reading, place: str, value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        _refuse(reading, place, f"{_shown(value)} is no type; types are {', '.join(TYPES)}")
    return True


def _check_enum(reading: _Reading, place: str, value: object) -> bool:
    if not isinstance(value, list) or not value:
        _refuse(reading, place, f"{_shown(value)} is no list of values")
    reading.num_nodes += len(value)
    return True


def _check_required(reading: _Reading, place: str, value: object) -> bool:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        _refuse(reading, place, f"{_shown(value)} is no list of names")
    return True


def _check_pattern(reading: _Reading, place: str, value: object) -> bool:
    if not isinstance(value, str) or len(value) > MAX_PATTERN_CHARS:
        _refuse(reading, place, f"{_shown(value)} is no expression of at most {MAX_PATTERN_CHARS} characters")
    unknown = UNENFORCED_EXPRESSION.search(value.replace("\\\\", ""))
    if unknown is not None:
        _leave_out(reading, place, f"has {unknown[0]!r}, which is not enforced,")
        return False
    reading.patterns.append((place, value))
    return True


def _check_num_properties(formed: dict[str, Any], place: str, reading: _Reading) -> None:
    """Leave out the number of properties where some that have a name of their own may be absent."""
    names = [name for name in ("minProperties", "maxProperties") if name in formed]
    if names and not set(formed.get("properties", ())) <= set(formed.get("required", ())):
        for name in names:
            _leave_out(reading, f"{place}/{name}", "is not enforced where properties are not required,")
            del formed[name]


def _check_format(reading: _Reading, place: str, value: object) -> bool:
    if not isinstance(value, str):
        _refuse(reading, place, f"{_shown(value)} is no name of a format")
    if value not in FORMATS:
        _leave_out(reading, place, f"is {value[:50]!r}, which is not enforced; {', '.join(FORMATS)} are,")
    return value in FORMATS


def _check_ref(reading: _Reading, place: str, value: object) -> bool:
    if not isinstance(value, str) or not value.startswith("#"):
        _refuse(
            reading, place, f"{_shown(value)} is outside of this schema; only references such as #/$defs/a are read"
        )
    if resolved(value, reading.root) is None:
        _refuse(reading, place, f"{_shown(value)} leads to no schema")
    return True


def _check_count(reading: _Reading, place: str, value: object) -> bool:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, bool) or not isinstance(whole, int) or not 0 <= whole < 2**31:
        _refuse(reading, place, f"{_shown(value)} is no count")
    return True


def _check_number(reading: _Reading, place: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(reading, place, f"{_shown(value)} is no number")
    if not place.endswith("/multipleOf"):
        return True
    if value <= 0:
        _refuse(reading, place, f"{_shown(value)} is not above 0")
    digits = repr(value).replace(".", "").lstrip("0")
    is_small = digits.isdigit() and int(digits) <= MAX_MULTIPLE
    if not is_small:
        _leave_out(reading, place, f"is not enforced beyond {MAX_MULTIPLE}, decimal point left out,")
    return is_small


def _accept(_reading: _Reading, _place: str, _value: object) -> bool:
    return True


_CHECKS: Mapping[str, Callable[[_Reading, str, Any], bool]] = {
    "type": _check_type,
    "enum": _check_enum,
    "const": _accept,
    "required": _check_required,
    "pattern": _check_pattern,
    "format": _check_format,
    "$ref": _check_ref,
    **dict.fromkeys(_COUNTS, _check_count),
    **dict.fromkeys(_NUMBERS, _check_number),
}


def _leave_out(reading: _Reading, place: str, reason: str) -> None:
    """Note what is not enforced; an error where it has to be."""
    if reading.is_strict:
        raise UnsupportedError(f"{reading.where} at {place} {reason} so it is refused while strict is set")
    reading.notes.append(place)


def _refuse(reading: _Reading, place: str, reason: str) -> NoReturn:
    raise InputError(f"{reading.where} at {place}: {reason}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _step(name: str) -> str:
    """A name as a step of a place."""
    return name.replace("~", "~0").replace("/", "~1")[:80]


def _shown(value: object) -> str:
    return repr(value)[:80]
