"""Typed reads from parsed JSON and file metadata; every refusal names the field, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from subsecond.core.errors import FormatError

T = TypeVar("T", int, float, str, bool, list[Any])

_KIND_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", list: "a list"}


def read_field(source: Mapping[str, object], name: str, kind: type[T], where: str) -> T:
    """`source[name]` as exactly `kind` (an integer also counts as a float); FormatError otherwise.

    `where` names the file or the section for the message.
    """
    if name not in source:
        raise FormatError(f"{where}: field {name!r} is missing; it must be {_KIND_NAMES[kind]}")
    given = source[name]
    if kind is float and type(given) is int and abs(given) < 2**53:
        return kind(given)
    if type(given) is not kind:
        raise FormatError(f"{where}: field {name!r} is {shorten(given)}; it must be {_KIND_NAMES[kind]}")
    return given


def read_int(source: Mapping[str, object], name: str, where: str, low: int, high: int) -> int:
    """`source[name]` as an integer in [low, high]; FormatError otherwise."""
    value = read_field(source, name, int, where)
    if not low <= value <= high:
        raise FormatError(f"{where}: field {name!r} is {shorten(value)}; allowed are {low} to {high}")
    return value


def read_mapping(source: Mapping[str, object], name: str, where: str) -> Mapping[str, object]:
    """`source[name]` as a mapping with string keys; FormatError otherwise."""
    given = source.get(name)
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise FormatError(f"{where}: field {name!r} is {shorten(given)}; it must be an object")
    return given


def shorten(value: object, max_chars: int = 60) -> str:
    """A value for a message, cut to `max_chars`."""
    text = repr(value)
    return text if len(text) <= max_chars else f"{text[:max_chars]}..."
