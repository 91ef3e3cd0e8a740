"""What a machine was measured to do with these kernels, as frozen values; measures nothing and predicts nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

VALUE_OPERATORS = (
    "Embed",
    "Normalize",
    "Rope",
    "GatedActivation",
    "Activate",
    "Add",
    "Scale",
    "Softcap",
    "SelectRows",
)
"""Operators whose time is one for each value of their output."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Whose figures these are: another processor, build or number of threads is measured anew.

    `build` tells builds of the extension apart, `layout` its packed layouts; `flags` are those of the processor.
    """

    processor_name: str
    architecture: str
    flags: tuple[str, ...]
    num_cores: int
    version: str
    build: str
    layout: int
    isa: str
    num_threads: int


@dataclass(frozen=True, slots=True)
class Peak:
    """Operations a second of a multiply instruction, all `num_threads` threads together; a multiply-add is two."""

    isa: str
    instruction: str
    num_threads: int
    operations_s: float


@dataclass(frozen=True, slots=True)
class ReadRate:
    """Bytes a second that `num_threads` threads read together, each its own `thread_bytes` over and over."""

    num_threads: int
    thread_bytes: int
    bytes_s: float


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds that pass beside the work itself.

    step_s     of a step without work, the batch's arrays and the pool's run included
    call_s     of an operator without rows
    barrier_s  of a barrier within a run of the pool
    run_s      of an empty run of the pool
    sample_s   of drawing one token; logit_s for each logit that it is drawn from
    """

    step_s: float
    call_s: float
    barrier_s: float
    run_s: float
    sample_s: float
    logit_s: float


@dataclass(frozen=True, slots=True)
class RowCurve:
    """Seconds of one unit of work by number of rows, ascending.

    Between two numbers of rows on a straight line, beyond the last on with the last slope.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, num_rows: float) -> float:
        """Seconds at `num_rows`, at least 1."""
        if num_rows <= self.rows[0]:
            return self.seconds[0]
        if len(self.rows) == 1:
            return self.seconds[0] * num_rows / self.rows[0]
        upper = next((i for i, rows in enumerate(self.rows) if rows >= num_rows), len(self.rows) - 1)
        slope = (self.seconds[upper] - self.seconds[upper - 1]) / (self.rows[upper] - self.rows[upper - 1])
        return max(self.seconds[upper - 1] + slope * (num_rows - self.rows[upper - 1]), 0.0)


@dataclass(frozen=True, slots=True)
class StreamCurve:
    """Share of the memory's read rate that an operator with one row reaches, by the bytes that it reads, ascending.

    Straight lines over the logarithm of the bytes, level beyond the ends.
    """

    num_bytes: tuple[int, ...]
    shares: tuple[float, ...]

    def at(self, num_bytes: float) -> float:
        """Share of an operator that reads `num_bytes`."""
        return _over_logarithm(list(zip(self.num_bytes, self.shares, strict=True)), num_bytes)


@dataclass(frozen=True, slots=True)
class LinearSpeed:
    """Linears whose weights have one packed format, on all threads.

    weight_bytes  bytes of memory a weight takes
    weight_s      seconds a weight, the weights being in cache and the activations packed
    stream        share of the memory's read rate
    overlap       with several rows, how much of the shorter of the two times, that of arithmetic and that of memory, is
                  hidden behind the longer: from 0, they follow each other, to 1
    """

    weight_bytes: float
    weight_s: RowCurve
    stream: StreamCurve
    overlap: float


@dataclass(frozen=True, slots=True)
class AttentionSpeed:
    """Attention with `group` query heads for each key/value head, on all threads; keys and values in cache.

    decode_s   seconds for each (query, position, channel of a query head) in steps of one row a sequence
    prompt_s   the same in steps of many rows
    channel_s  seconds for each (query, channel of a query head) whatever the number of positions: rotation and storing
    """

    head_dim: int
    group: int
    decode_s: float
    prompt_s: float
    channel_s: float


@dataclass(frozen=True, slots=True)
class AttentionFigures:
    """Attention of the kernels of one instruction set.

    speeds        by head_dim and group
    head_share    how evenly fewer key/value heads than threads spread over these: 0 when a head keeps to one thread, 1
                  when all threads share every head
    rest_share    the same of more heads than threads, when not every thread can have as many
    overlap       as of `LinearSpeed`, with one row
    kv_bytes      bytes of one channel of a key or value
    """

    speeds: tuple[AttentionSpeed, ...]
    head_share: float
    rest_share: float
    overlap: float
    kv_bytes: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Figures of one machine. Times are those of `fingerprint.num_threads` threads unless said otherwise.

    processor_share  of the processors' time that the threads got when they asked for all of it: with less than all,
                     other programs ran and the figures are worth little
    peaks            by instruction set, best first
    read_rates       by threads (one, and all) and ascending working set
    linears          by packed format
    activation_s     of packing one activation of every row, by rows of the step
    values           seconds a value of the output, by name of the operator
    """

    fingerprint: Fingerprint
    processor_share: float
    peaks: tuple[Peak, ...]
    read_rates: tuple[ReadRate, ...]
    overheads: Overheads
    linears: Mapping[str, LinearSpeed]
    activation_s: RowCurve
    attention: AttentionFigures
    values: Mapping[str, float]


def read_rate(rates: Iterable[ReadRate], num_threads: int, num_bytes: float) -> float:
    """Bytes a second of `num_threads` threads that go through `num_bytes` together over and over."""
    points = [(num_threads * rate.thread_bytes, rate.bytes_s) for rate in rates if rate.num_threads == num_threads]
    return _over_logarithm(points, num_bytes)


def _over_logarithm(points: Sequence[tuple[int, float]], x: float) -> float:
    """The value at `x` on straight lines between points over the logarithm of x, level beyond the ends."""
    if x <= points[0][0]:
        return points[0][1]
    for (low, low_value), (high, high_value) in pairwise(points):
        if x < high:
            return low_value + math.log(x / low) / math.log(high / low) * (high_value - low_value)
    return points[-1][1]
