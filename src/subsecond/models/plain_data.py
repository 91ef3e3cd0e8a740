"""Checks that values from outside are plain data as JSON has it, of a size that was agreed on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from subsecond.core.errors import InputError


def use_room(value: object, what: str, room: int, max_depth: int) -> int:
    """Return how much of `room` is left behind a value, each character of its texts and every item taking one.

    Raises:
        InputError: it is not plain data, takes more room or nests deeper; `what` names it.
    """
    pending = [(value, 0)]
    while pending:
        current, depth = pending.pop()
        room -= len(current) if isinstance(current, str) else 1
        if room < 0 or depth > max_depth:
            raise InputError(f"{what} is too large, or nests deeper than {max_depth} levels")
        if isinstance(current, Mapping):
            if not all(isinstance(key, str) for key in current):
                raise InputError(f"{what} has a key that is no text")
            pending += ((key, depth) for key in current)
            pending += ((item, depth + 1) for item in current.values())
        elif isinstance(current, list | tuple):
            pending += ((item, depth + 1) for item in current)
        elif not _is_plain(current):
            raise InputError(f"{what} holds a {type(current).__name__}; text, numbers, lists and mappings are allowed")
    return room


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
