"""Checks the variables that a caller gives to a chat template; which of them it uses is known by the template alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from subsecond.core.errors import InputError

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Names by which templates are told whether the model shall reason."""

MAX_VARIABLES = 32
MAX_ITEMS = 10_000
MAX_CHARS = 2**20
MAX_DEPTH = 32


def check_variables(given: Mapping[Any, object]) -> dict[str, object]:
    """Return a copy of plain data as JSON has it, checked before it is copied.

    Raises:
        InputError: `given` is no mapping of names, holds anything else, or is larger than any setting needs.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"template_kwargs is {type(given).__name__}; give a mapping of names to values")
    if len(given) > MAX_VARIABLES:
        raise InputError(f"template_kwargs has {len(given)} names; at most {MAX_VARIABLES} are allowed")
    for name in given:
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(
                f"template_kwargs has the name {str(name)[:50]!r}; names are words such as enable_thinking"
            )
    room = _Room()
    return {name: room.copy(value, name, MAX_DEPTH) for name, value in given.items()}


class _Room:
    """How much more all values together may hold."""

    def __init__(self) -> None:
        self._num_items = MAX_ITEMS
        self._num_chars = MAX_CHARS

    def copy(self, value: object, name: str, depth: int) -> object:
        """Return a copy of `value`, which belongs to the variable `name`."""
        self._num_items -= 1
        if isinstance(value, str):
            self._num_chars -= len(value)
        if self._num_items < 0 or self._num_chars < 0 or depth < 0:
            raise InputError(
                f"template_kwargs[{name!r}] is too large; all values together may have {MAX_ITEMS} items, "
                f"{MAX_CHARS} characters and {MAX_DEPTH} levels"
            )
        if isinstance(value, Mapping):
            return {self._key(key, name): self.copy(item, name, depth - 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, name, depth - 1) for item in value]
        if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        raise InputError(
            f"template_kwargs[{name!r}] holds {str(value)[:50]} ({type(value).__name__}); "
            "give text, numbers, true, false, null, lists and mappings"
        )

    def _key(self, key: object, name: str) -> str:
        if not isinstance(key, str):
            raise InputError(f"template_kwargs[{name!r}] has a key that is {type(key).__name__}; keys are text")
        self._num_chars -= len(key)
        return key
