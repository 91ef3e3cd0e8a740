"""When requests are sent: so many at a time, at random times of a given rate, or at times that a file gives."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subsecond.core.errors import FormatError, InputError

MAX_FILE_BYTES = 64 * 2**20
MAX_ARRIVALS = 10**6
MAX_ARRIVAL_TOKENS = 10**6


@dataclass(frozen=True, slots=True)
class Closed:
    """`concurrency` clients, each of which sends its next request when the one before has been answered."""

    concurrency: int

    @property
    def label(self) -> str:
        """How it is called in tables and keys."""
        return f"{self.concurrency} at a time"


@dataclass(frozen=True, slots=True)
class Open:
    """Requests are sent at their times, however many are being answered; seconds from the beginning, ascending.

    rate     requests a second where they are drawn; None where a file gives the times
    lengths  for each request its tokens of prompt and answer, None where the workload's count
    """

    times_s: tuple[float, ...]
    rate: float | None = None
    lengths: tuple[tuple[int | None, int | None], ...] = ()

    @property
    def label(self) -> str:
        """How it is called in tables and keys."""
        return "times of a file" if self.rate is None else f"{self.rate:g} a second"


Arrivals = Closed | Open


def poisson(rate: float, count: int, seed: int) -> Open:
    """Arrivals of a Poisson process of `rate` requests a second: the gaps are exponential, the first begins at 0.

    The same seed gives the same times in every repeat and for every target.
    """
    if not 0 < rate < math.inf:
        raise InputError(f"a rate of {rate} requests a second is not allowed; give a number above 0")
    rng = random.Random(f"arrivals {seed}")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now -= math.log(1.0 - rng.random()) / rate
    return Open(tuple(times), rate)


def read_arrivals(path: Path, count: int | None = None) -> Open:
    """Times from a file with one JSON object a line, of which the first `count` are taken, or all.

    A line has `at_s`, seconds from the beginning, and may have `prompt_tokens` and `output_tokens`; the names of the
    published traces of Mooncake are understood too: `timestamp` in milliseconds, `input_length`, `output_length`.

    Raises:
        InputError: there is no such file, or it has no line.
        FormatError: a line is something else, or the times do not ascend.
    """
    if not path.is_file():
        raise InputError(f'there is no file {str(path)!r}; --arrivals needs one with lines such as {{"at_s": 0.5}}')
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; give a part of it")
    times: list[float] = []
    lengths: list[tuple[int | None, int | None]] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if len(times) == (MAX_ARRIVALS if count is None else count):
                break
            at_s, prompt, output = _arrival(line, f"{path}:{number}")
            if times and at_s < times[-1]:
                raise FormatError(
                    f"{path}:{number}: at {at_s:g} s, after one at {times[-1]:g} s; sort the lines by time"
                )
            times.append(at_s)
            lengths.append((prompt, output))
    if not times:
        raise InputError(f'{path} has no line; write one JSON object for each request, such as {{"at_s": 0.5}}')
    has_lengths = any(length != (None, None) for length in lengths)
    return Open(tuple(at_s - times[0] for at_s in times), lengths=tuple(lengths) if has_lengths else ())


def _arrival(line: str, where: str) -> tuple[float, int | None, int | None]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError(f'{where}: is {line[:60]!r}; it must be an object such as {{"at_s": 0.5}}')
    at_s = _number(found["at_s"]) if "at_s" in found else _number(found.get("timestamp"), 1e-3)
    if at_s is None:
        raise FormatError(f"{where}: needs `at_s`, seconds from 0, or `timestamp`, milliseconds from 0")
    sizes = []
    for names in (("prompt_tokens", "input_length"), ("output_tokens", "output_length")):
        value = next((found[name] for name in names if name in found), None)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_whole and 1 <= value <= MAX_ARRIVAL_TOKENS):
            raise FormatError(f"{where}: {names[0]} must be a whole number from 1 to {MAX_ARRIVAL_TOKENS}")
        sizes.append(value)
    return at_s, sizes[0], sizes[1]


def _number(value: Any, factor: float = 1.0) -> float | None:
    """The value times the factor; None unless it is a finite number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value) * factor if abs(value) < 1e15 else math.inf
    return number if 0 <= number < math.inf else None
