"""Times linears of every packed format by number of rows, their weights in cache, and with one row from memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from subsecond import _native
from subsecond.backends.native.trial import Runner, Trial, WeightPool
from subsecond.backends.probe import LinearSpeed, ReadRate, RowCurve, read_rate

WIDTH = 2048  # inputs
# Numbers of rows, and outputs for each thread: all threads get the same number of units of work.
FEW_ROWS, FEW_ROWS_OUTPUTS = (1, 2, 4, 8, 16, 32), 512
MANY_ROWS, MANY_ROWS_OUTPUTS = (64, 128), 256
LEAST_OUTPUTS = 64  # what a linear of these takes is mostly packing
NUM_COLD = 3  # weights of a format that are read from memory
NUM_RUNS = 8
LEAST_SHARE = 0.1  # of a linear's time is its weights', whatever packing seems to take


@dataclass(frozen=True, slots=True)
class LinearTimer:
    """What all timings of linears share. `call_s` is the time of an operator without work, on `num_threads`."""

    pool: WeightPool
    formats: Sequence[str]
    isa: str
    num_threads: int
    call_s: float

    def bytes_of(self, kind: str) -> float:
        """Bytes of one weight."""
        return _native.packed_size(kind, WIDTH, WIDTH) / WIDTH**2

    def warm_runner(self, outputs: int) -> Runner:
        """Linears of every format with `outputs` for each thread, each twice: the second has its weights in cache."""
        trial = Trial(self.pool)
        trial.source("x", WIDTH)
        sizes = [(kind, kind, outputs) for kind in self.formats]
        for name, kind, thread_outputs in [*sizes, ("least", self._smallest, LEAST_OUTPUTS)]:
            matrix = trial.linear(f"{name} first", "x", kind, thread_outputs * self.num_threads)
            trial.graph.linear(name, "x", trial.add(f"{name} again", matrix), matrix.num_outputs)
        return trial.start("x", self.isa, self.num_threads, max(MANY_ROWS))

    def split(self, seconds: Mapping[str, float], outputs: int) -> tuple[dict[str, float], float]:
        """Seconds of one weight of each format, and of packing one activation of every row of the step."""
        few_s, many_s = seconds["least"], seconds[self._smallest]
        output_s = max(many_s - few_s, 0.0) / (outputs - LEAST_OUTPUTS)
        pack_s = max(few_s - self.call_s - LEAST_OUTPUTS * output_s, 0.0)
        num_weights = WIDTH * outputs * self.num_threads
        rest_s = {kind: seconds[kind] - self.call_s - pack_s for kind in self.formats}
        weight_s = {kind: max(rest_s[kind], LEAST_SHARE * seconds[kind]) / num_weights for kind in self.formats}
        return weight_s, pack_s / WIDTH

    def cold_weight_s(self, activation_s: float) -> dict[str, float]:
        """Seconds of one weight of each format with one row, the weights coming from memory."""
        trial = Trial(self.pool)
        trial.source("x", WIDTH)
        num_outputs = FEW_ROWS_OUTPUTS * self.num_threads
        for index in range(NUM_COLD):
            for kind in self.formats:
                trial.linear(f"{kind} {index}", "x", kind, num_outputs)
        seconds = trial.start("x", self.isa, self.num_threads, 1).operator_seconds(NUM_RUNS, 1)
        extra_s = self.call_s + activation_s * WIDTH
        median_s = {kind: median([seconds[f"{kind} {i}"] for i in range(NUM_COLD)]) for kind in self.formats}
        return {
            kind: max(time_s - extra_s, LEAST_SHARE * time_s) / (WIDTH * num_outputs)
            for kind, time_s in median_s.items()
        }

    @property
    def num_cold_bytes(self) -> float:
        """Bytes that one run of `cold_weight_s` reads."""
        num_weights = NUM_COLD * FEW_ROWS_OUTPUTS * self.num_threads * WIDTH
        return num_weights * sum(self.bytes_of(kind) for kind in self.formats)

    @property
    def _smallest(self) -> str:
        """The format that depends least on memory."""
        return min(self.formats, key=self.bytes_of)


def time_linears(
    timer: LinearTimer, read_rates: Sequence[ReadRate], limit_s: float
) -> tuple[dict[str, LinearSpeed], RowCurve]:
    """Speed of each format, and seconds of packing one activation of every row, by rows of the step.

    Numbers of rows for which `limit_s` seconds in all do not suffice are left out.
    """
    deadline_s = time.perf_counter() + limit_s
    rows: list[int] = []
    weight_s: dict[str, list[float]] = {kind: [] for kind in timer.formats}
    activation_s: list[float] = []
    last_s = 0.0
    for counts, outputs in ((FEW_ROWS, FEW_ROWS_OUTPUTS), (MANY_ROWS, MANY_ROWS_OUTPUTS)):
        runner = timer.warm_runner(outputs)
        for num_rows in counts:
            begin_s = time.perf_counter()
            if rows and begin_s + last_s * num_rows / rows[-1] > deadline_s:
                break
            weights, packing = timer.split(runner.operator_seconds(NUM_RUNS, num_rows), outputs)
            rows.append(num_rows)
            activation_s.append(packing)
            for kind, seconds in weights.items():
                weight_s[kind].append(seconds)
            last_s = time.perf_counter() - begin_s
    cold_s = timer.cold_weight_s(activation_s[0])
    rate = read_rate(read_rates, timer.num_threads, timer.num_cold_bytes)
    speeds = {
        kind: LinearSpeed(
            weight_bytes=timer.bytes_of(kind),
            weight_s=RowCurve(tuple(rows), tuple(weight_s[kind])),
            stream_share=min(timer.bytes_of(kind) / (cold_s[kind] * rate), 1.0),
        )
        for kind in timer.formats
    }
    return speeds, RowCurve(tuple(rows), tuple(activation_s))
