"""Runs work in a thread with a large stack, which recursion in the compiler of grammars needs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

STACK_BYTES = 256 * 2**20
"""Rules that refer to each other are followed by recursion. Pages that are not used cost nothing."""

_size_lock = threading.Lock()  # the size is one of the whole process

_Made = TypeVar("_Made")


def with_large_stack(work: Callable[[], _Made]) -> _Made:
    """Return what `work` does, in a thread with stack for deep recursion; an error in it is raised here."""
    outcome: list[_Made] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="subsecond-grammar")
    with _size_lock:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]
