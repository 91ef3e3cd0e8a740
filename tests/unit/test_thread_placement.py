"""Threads of a step get a processor each when there are as many as there may be used, and stay free otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# The pool of a fresh process runs with each number of threads; then the affinity of all threads is looked at.
PLACES = """
import json, os, sys
from subsecond import _native
for num_threads in map(int, sys.argv[1:]):
    _native.measure_pool(num_threads)
print(json.dumps([[int(thread) == os.getpid(), sorted(os.sched_getaffinity(int(thread)))]
                  for thread in os.listdir("/proc/self/task")]))
"""
ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

pytestmark = pytest.mark.skipif(len(ALLOWED) < 2, reason="one processor leaves nothing to choose")


def places(*num_threads: int) -> tuple[list[int], list[list[int]]]:
    """Where the caller may run after these runs, and where its workers may."""
    command = [sys.executable, "-c", PLACES, *map(str, num_threads)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    threads = json.loads(result.stdout)
    (caller,) = [place for is_caller, place in threads if is_caller]
    return caller, [place for is_caller, place in threads if not is_caller]


def test_as_many_threads_as_processors_get_one_each() -> None:
    caller, workers = places(len(ALLOWED))
    assert caller == ALLOWED
    assert [len(place) for place in workers] == [1] * (len(ALLOWED) - 1)
    assert len({place[0] for place in workers}) == len(workers)


def test_more_threads_than_processors_are_left_to_the_system() -> None:
    caller, workers = places(len(ALLOWED), len(ALLOWED) + 1)
    assert caller == ALLOWED
    assert workers == [ALLOWED] * len(ALLOWED)


def test_a_process_held_to_fewer_processors_keeps_to_them() -> None:
    os.sched_setaffinity(0, ALLOWED[:-1])  # inherited by the fresh process
    try:
        caller, workers = places(len(ALLOWED))
    finally:
        os.sched_setaffinity(0, ALLOWED)
    assert caller == ALLOWED[:-1]
    assert workers == [ALLOWED[:-1]] * (len(ALLOWED) - 1)
