"""Counts what a chat template's rendering costs and stops it at fixed limits; knows nothing of the template engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from subsecond.core.errors import InputError, SubsecondError, UnsupportedError


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may cost. Real templates stay below a thousandth of most of these.

    `max_steps` counts loop rounds, calls, filters and operators; `max_work` characters and items produced or visited;
    `max_value_length` characters of a text or items of a list; `max_range` numbers of a `range()`.
    """

    max_source_bytes: int = 100 * 1024  # parsing takes a second for so many of them at worst
    max_output_chars: int = 8 * 2**20
    max_messages: int = 10_000
    max_range: int = 65_536
    max_steps: int = 1_000_000
    max_work: int = 128 * 2**20
    max_value_length: int = 16 * 2**20
    timeout_s: float = 2.0


DEFAULT_LIMITS = TemplateLimits()

MAX_INTEGER_BITS = 1024
ITEM_WORK = 16
"""Work of an item of a container compared with a character of a text, by the memory they take."""


class LimitError(InputError):
    """A rendering has reached one of its limits."""


class Meter:
    """The costs of one rendering."""

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self._num_steps = 0
        self._work = 0
        self._deadline_s = time.monotonic() + limits.timeout_s

    def step(self) -> None:
        """Count one step and look at the clock."""
        self._num_steps += 1
        if self._num_steps > self.limits.max_steps:
            raise LimitError(f"the chat template takes more than {self.limits.max_steps} steps")
        self._check_clock()

    def work(self, amount: int) -> None:
        """Count characters or items that are about to be produced or visited."""
        self._work += amount
        if self._work > self.limits.max_work:
            raise LimitError("the chat template copies more text than any conversation needs")

    def new_value(self, length: int) -> None:
        """Allow a text or list of this length, which is about to be made."""
        if length > self.limits.max_value_length:
            raise LimitError(f"the chat template makes a value longer than {self.limits.max_value_length}")
        self.work(length)

    def visit(self, value: object) -> None:
        """Count everything inside a value that is about to be compared, sorted or hashed; a text counts as one item."""
        pending = [value]
        while pending:
            current = pending.pop()
            if isinstance(current, Mapping):
                self._container(len(current))
                pending += current.values()
                pending += (key for key in current if isinstance(key, tuple))
            elif isinstance(current, (list, tuple, set, frozenset)):
                self._container(len(current))
                pending += current

    def write(self, value: object, what: str, error: type[SubsecondError] = UnsupportedError) -> None:
        """Allow a value to be turned into text: it must be plain data, else `error`, and all text in it counts."""
        pending = [value]
        while pending:
            current = pending.pop()
            if isinstance(current, str):
                self.work(len(current))
            elif isinstance(current, Mapping):
                self._container(len(current))
                pending += current.keys()
                pending += current.values()
            elif isinstance(current, (list, tuple)):
                self._container(len(current))
                pending += current
            elif not isinstance(current, (int, float, range, type(None))):
                raise error(f"{what} holds a {type(current).__name__}; only text, numbers, lists and mappings fit")

    def _container(self, num_items: int) -> None:
        """Count a container that a walk enters, and look at the clock: inner lists that are shared make walks long."""
        self.work(ITEM_WORK * (num_items + 1))
        self._check_clock()

    def _check_clock(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise LimitError(f"the chat template takes longer than {self.limits.timeout_s:g} s")


def multiplied(meter: Meter, left: object, right: object) -> None:
    """Allow `left * right`."""
    for one, other in ((left, right), (right, left)):
        if isinstance(one, int) and isinstance(other, (str, bytes, list, tuple)):
            meter.new_value(len(other) * max(one, 0) * (1 if isinstance(other, str) else ITEM_WORK))
    if isinstance(left, int) and isinstance(right, int):
        _integer(left.bit_length() + right.bit_length())


def raised(left: object, right: object) -> None:
    """Allow `left ** right`."""
    if isinstance(left, int) and isinstance(right, int):
        _integer(left.bit_length() * max(right, 0))


def added(meter: Meter, left: object, right: object) -> None:
    """Allow `left + right`."""
    if isinstance(left, str) and isinstance(right, str):
        meter.new_value(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        meter.new_value(ITEM_WORK * (len(left) + len(right)))


def _integer(num_bits: int) -> None:
    if num_bits > MAX_INTEGER_BITS:
        raise LimitError(f"the chat template computes an integer of more than {MAX_INTEGER_BITS} bits")
