"""Samples taken in turn, round by round, so that all see the same machine; medians, ranges and the time left."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.timing import PeerError

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Figure:
    """Median and range of one figure over the rounds."""

    median: float
    lowest: float
    highest: float
    num_samples: int

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        return cls(statistics.median(values), min(values), max(values), len(values))


def measure(
    samplers: Mapping[Key, Callable[[], float]],
    rounds: int,
    show: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> tuple[dict[Key, Figure], dict[Key, str]]:
    """Run all samplers in turn, `rounds` times.

    Returns figures by key, and by key the reason of the samplers that failed, which are not asked again.
    """
    order = list(samplers)
    values: dict[Key, list[float]] = {key: [] for key in samplers}
    seconds: dict[Key, float] = {}
    failures: dict[Key, str] = {}
    for turn in range(rounds):
        for index, (key, sampler) in enumerate(samplers.items()):
            if key in failures:
                continue
            start = time.monotonic()
            try:
                values[key].append(sampler())
                found = f"{values[key][-1]:.4g}"
            except PeerError as error:
                failures[key] = str(error)
                found = f"failed: {last_line(failures[key])}"
            seconds[key] = time.monotonic() - start
            rest = [*order[index + 1 :], *order * (rounds - turn - 1)]
            left = seconds_left([each for each in rest if each not in failures], seconds)
            show(f"round {turn + 1}/{rounds}  {name_of(key)}  {found}  {duration_text(left)} left")
    figures = {key: Figure.of(found) for key, found in values.items() if key not in failures}
    return figures, failures


def seconds_left(rest: Sequence[Key], seconds: Mapping[Key, float]) -> float:
    """What the samples still to take will cost, each as its last one; the mean of the others where there was none."""
    mean = statistics.fmean(seconds.values()) if seconds else 0.0
    return sum(seconds.get(key, mean) for key in rest)


def name_of(key: Hashable) -> str:
    """A key in words."""
    return "  ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def last_line(reason: str) -> str:
    """What a program that failed said last, which is what went wrong."""
    return (reason.strip().splitlines() or [""])[-1]


def duration_text(seconds: float) -> str:
    """As "1 h 05 min", "3 min 20 s" or "7 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
