"""JSON schemas are checked place by place; what cannot be enforced is named or, where that is wanted, refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.engine.grammar.schema_form import MAX_DEPTH, MAX_NODES, read_schema
from subsecond.engine.grammar.schema_overlap import are_disjoint, resolved


def told(kind: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}


def nested(depth: int) -> dict[str, Any]:
    return {"items": nested(depth - 1)} if depth else {"type": "string"}


def test_what_says_nothing_about_validity_is_left_out() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "d",
        "default": {},
        "x-own": 1,
        "type": "object",
        "uniqueItems": False,
        "properties": {"title": {"type": ["string", "null"], "examples": ["a"]}, "a": True},
        "required": ["title"],
        "additionalProperties": False,
        "$defs": {"d": {"enum": [1]}},
    }
    read = read_schema(json.dumps(schema), is_strict=True)
    assert read.schema == {
        "type": "object",
        "properties": {"title": {"type": ["string", "null"]}, "a": True},
        "required": ["title"],
        "additionalProperties": False,
        "$defs": {"d": {"enum": [1]}},
    }
    assert read.unenforced == ()
    assert read_schema("true", is_strict=True).schema == {}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"not": {}}, "#/not"),
        ({"properties": {"a/b~c": {"if": {"type": "null"}}}}, "#/properties/a~1b~0c/if"),
        ({"items": {"uniqueItems": True}}, "#/items/uniqueItems"),
        ({"unevaluatedProperties": False}, "#/unevaluatedProperties"),
        ({"anyOf": [{"type": "null"}, {"format": "phone"}]}, "#/anyOf/1/format"),
        ({"multipleOf": 1e-7}, "#/multipleOf"),
        ({"multipleOf": 10_001}, "#/multipleOf"),
        ({"pattern": "(?=a)b"}, "#/pattern"),
        ({"pattern": r"\bword"}, "#/pattern"),
        ({"minProperties": 1, "properties": {"a": {}}}, "#/minProperties"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 1}]}, "#/oneOf"),
    ],
)
def test_what_is_not_enforced(schema: dict[str, Any], place: str) -> None:
    read = read_schema(json.dumps(schema), is_strict=False)
    assert read.unenforced == (place,)
    assert place.rsplit("/", 1)[1] not in json.dumps(read.schema)
    with pytest.raises(UnsupportedError, match=f"{place} .*refused while strict"):
        read_schema(json.dumps(schema), is_strict=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{", "is no JSON"),
        ('{"const": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "is no JSON|nests deeper"),
        ("false", "is false"),
        ("[]", "at #: .*is no schema"),
        ('{"properties": {"a": 1}}', "at #/properties/a: 1 is no schema"),
        ('{"properties": []}', "at #/properties: .*no mapping"),
        ('{"anyOf": {}}', "at #/anyOf: .*no list of schemas"),
        ('{"type": "strin"}', "at #/type: 'strin' is no type; types are null"),
        ('{"type": []}', "at #/type: "),
        ('{"enum": []}', "at #/enum: "),
        ('{"required": [1]}', "at #/required: "),
        ('{"pattern": 1}', "at #/pattern: "),
        ('{"format": {}}', "at #/format: "),
        ('{"minLength": -1}', "at #/minLength: -1 is no count"),
        ('{"maxItems": true}', "at #/maxItems: "),
        ('{"minimum": "1"}', "at #/minimum: "),
        ('{"multipleOf": 0}', "at #/multipleOf: 0 is not above 0"),
        ('{"$ref": "http://127.0.0.1/a"}', r"at #/\$ref: .*outside of this schema"),
        ('{"$ref": "a.json#/b"}', r"at #/\$ref: .*outside of this schema"),
        ('{"$ref": "#/$defs/a"}', r"at #/\$ref: .*leads to no schema"),
        ('{"patternProperties": {"(?!a)b": {}}}', "at #/patternProperties"),
        (json.dumps(nested(MAX_DEPTH + 1)), "nest 64 levels"),
        (json.dumps({"anyOf": [{}] * MAX_NODES}), "may hold 20000 others"),
        (json.dumps({"patternProperties": {f"a{n}": {} for n in range(33)}}), "33 patterns are too many"),
    ],
)
@pytest.mark.parametrize("is_strict", [True, False])
def test_what_is_no_schema(source: str, message: str, is_strict: bool) -> None:
    with pytest.raises((InputError, UnsupportedError), match=message):
        read_schema(source, is_strict=is_strict)


@pytest.mark.parametrize(
    ("alternatives", "expected"),
    [
        ([{"type": "string"}, {"type": ["null", "integer"]}], True),
        ([{"type": "number"}, {"type": "integer"}], False),
        ([{"type": "string"}, {}], False),
        ([{"const": "a"}, {"enum": ["b", "c"]}], True),
        ([{"const": "a"}, {"enum": ["b", "a"]}], False),
        ([{"const": 1}, {"const": 1.0}], False),
        ([told("a"), told("b")], True),
        ([told("a"), told("a")], False),
        ([told("a"), {**told("b"), "required": []}], False),
        ([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"type": "null"}], False),
        ([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], True),
        ([{"$ref": "#/$defs/loop"}, {"type": "null"}], False),
        ([{"$ref": "#/$defs/a", "type": "null"}, {"type": "object"}], False),
        ([True, {"type": "null"}], False),
    ],
)
def test_alternatives_that_exclude_each_other(alternatives: list[Any], expected: bool) -> None:
    root = {"$defs": {"a": told("a"), "b": told("b"), "loop": {"$ref": "#/$defs/loop"}}}
    assert are_disjoint(alternatives, root) is expected


def test_one_of_becomes_any_of_where_that_is_the_same() -> None:
    schema = {"oneOf": [{"type": "string"}, {"type": "null"}], "anyOf": [{"maxLength": 3}, {}]}
    read = read_schema(json.dumps(schema), is_strict=True)
    assert read.schema == {"anyOf": [{"maxLength": 3}, {}], "allOf": [{"anyOf": schema["oneOf"]}]}


def test_references() -> None:
    root = {"a~b": [{"c/d": {"type": "null"}}], "text": "x", "": True}
    assert resolved("#", root) is root
    assert resolved("#/a~0b/0/c~1d", root) == {"type": "null"}
    assert resolved("#/", root) is True
    for reference in ("#/a~0b/1", "#/a~0b/x", "#/text", "#/text/0", "#name", "#/missing"):
        assert resolved(reference, root) is None
