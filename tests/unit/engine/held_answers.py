"""Answers for tests: random choices among the tokens that a constraint allows, and what is valid under a schema."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subsecond.engine.constraint import Constraint
from subsecond.models.tokenizer import Tokenizer

MAX_TOKENS = 3_000


def allowed_by(constraint: Constraint, vocab_size: int) -> list[int]:
    """The tokens that may come next, from a mask of a vocabulary of this size."""
    mask = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
    constraint.fill_mask(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def random_answer(
    constraint: Constraint, tokenizer: Tokenizer, seed: int, *, begin: Sequence[int] = (), vocab_size: int = 0
) -> list[int]:
    """Token ids of an answer chosen at random, `begin` first, without the token that ends it.

    Tokens that close something are likely, so that answers end.
    """
    chooser = random.Random(seed)
    token_ids: list[int] = []
    closing = {token_id for text in '"}],:' for token_id in tokenizer.encode(text)}
    for place in range(MAX_TOKENS):
        allowed = allowed_by(constraint, vocab_size or tokenizer.vocab_size)
        assert allowed, f"nothing may follow {tokenizer.decode(token_ids)!r}"
        likely = [token_id for token_id in allowed if token_id in closing or token_id in tokenizer.eos_ids]
        if place < len(begin):
            token_id = begin[place]
            assert token_id in allowed, f"{token_id} may not follow {tokenizer.decode(token_ids)!r}"
        else:
            token_id = chooser.choice(likely if likely and chooser.random() < 0.6 else allowed)
        constraint.advance(token_id)
        if token_id in tokenizer.eos_ids:
            return token_ids
        token_ids.append(token_id)
    raise AssertionError(f"no end in {MAX_TOKENS} tokens: {tokenizer.decode(token_ids)[-200:]!r}")


_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def is_valid(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether a value is valid under a schema, for the keywords that the tests use."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not is_valid(value, _target(schema["$ref"], root), root):
        return False
    checks = (
        "type" not in schema or any(_is_a(value, name) for name in _listed(schema["type"])),
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        all(is_valid(value, each, root) for each in schema.get("allOf", ())),
        "anyOf" not in schema or any(is_valid(value, each, root) for each in schema["anyOf"]),
        "oneOf" not in schema or sum(is_valid(value, each, root) for each in schema["oneOf"]) == 1,
    )
    if not all(checks):
        return False
    if isinstance(value, str):
        return _is_valid_text(value, schema)
    if isinstance(value, list):
        return _is_valid_list(value, schema, root)
    if isinstance(value, dict):
        return _is_valid_object(value, schema, root)
    return isinstance(value, bool) or value is None or _is_valid_number(value, schema)


def _target(reference: str, root: Any) -> Any:
    for part in reference.split("/")[1:]:
        root = root[part]
    return root


def _listed(given: Any) -> list[str]:
    return given if isinstance(given, list) else [given]


def _is_a(value: object, name: str) -> bool:
    if name == "integer":
        return not isinstance(value, bool) and isinstance(value, int | float) and value == int(value)
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _is_valid_text(value: str, schema: Mapping[str, Any]) -> bool:
    is_long_enough = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    return is_long_enough and ("pattern" not in schema or re.search(schema["pattern"], value) is not None)


def _is_valid_number(value: float, schema: Mapping[str, Any]) -> bool:
    multiple = schema.get("multipleOf")
    return bool(
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or schema["exclusiveMinimum"] < value)
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        and (multiple is None or abs(value / multiple - round(value / multiple)) < 1e-6)
    )


def _is_valid_list(value: list[Any], schema: Mapping[str, Any], root: Any) -> bool:
    first = schema.get("prefixItems", [])
    rest = schema.get("items", True)
    return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)) and all(
        is_valid(item, first[index] if index < len(first) else rest, root) for index, item in enumerate(value)
    )


def _is_valid_object(value: dict[str, Any], schema: Mapping[str, Any], root: Any) -> bool:
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    if not set(schema.get("required", ())) <= set(value):
        return False
    for name, item in value.items():
        found = [properties[name]] if name in properties else []
        found += [inner for pattern, inner in patterns.items() if re.search(pattern, name)]
        if not all(is_valid(item, each, root) for each in found or [schema.get("additionalProperties", True)]):
            return False
    return bool(schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)))
