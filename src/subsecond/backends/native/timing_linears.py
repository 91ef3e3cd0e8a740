"""Times linears of every packed format by number of rows, their weights in cache, and with one row from memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from subsecond import _native
from subsecond.backends.native.trial import Runner, Trial, WeightPool
from subsecond.backends.probe import LinearSpeed, ReadRate, RowCurve, StreamCurve, read_rate

WIDTH = 2048  # inputs
# Numbers of rows, and the outputs that linears have at least; all threads get the same number of units of work.
FEW_ROWS, FEW_ROWS_OUTPUTS = (1, 2, 4, 8, 16, 32), 1024
MANY_ROWS, MANY_ROWS_OUTPUTS = (128,), 2048
UNIT_OUTPUTS = 64  # of a thread; what a linear of these takes is mostly packing
# Of linears that are read from memory, in this order; what another format left in cache disturbs the first of a format.
# Powers of two are avoided, since places so far apart share banks of the memory.
COLD_OUTPUTS = (7936, 1600, 1600, 320, 320)
OVERLAP_OUTPUTS = 1600  # of them, large enough for packing not to matter
COLD_ROWS = 8  # with which it is seen how reading and arithmetic overlap
NUM_RUNS, NUM_LONG_RUNS = 8, 4
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

    def outputs(self, least: int) -> int:
        """At least that many, in whole units of all threads."""
        unit = UNIT_OUTPUTS * self.num_threads
        return -(-least // unit) * unit

    def warm_runner(self, outputs: int) -> Runner:
        """Linears of every format, each twice: the second has its weights in cache."""
        trial = Trial(self.pool)
        trial.source("x", WIDTH)
        sizes = [(kind, kind, outputs) for kind in self.formats]
        for name, kind, num_outputs in [*sizes, ("least", self._smallest, self.outputs(1))]:
            matrix = trial.linear(f"{name} first", "x", kind, num_outputs)
            trial.graph.linear(name, "x", trial.add(f"{name} again", matrix), num_outputs)
        return trial.start("x", self.isa, self.num_threads, max(MANY_ROWS))

    def split(self, seconds: Mapping[str, float], outputs: int) -> tuple[dict[str, float], float]:
        """Seconds of one weight of each format, and of packing one activation of every row of the step."""
        few_s, many_s = seconds["least"], seconds[self._smallest]
        output_s = max(many_s - few_s, 0.0) / (outputs - self.outputs(1))
        pack_s = max(few_s - self.call_s - self.outputs(1) * output_s, 0.0)
        rest_s = {kind: seconds[kind] - self.call_s - pack_s for kind in self.formats}
        least_s = {kind: LEAST_SHARE * seconds[kind] for kind in self.formats}
        return {kind: max(rest_s[kind], least_s[kind]) / (WIDTH * outputs) for kind in self.formats}, pack_s / WIDTH

    def cold_seconds(self, num_rows: Sequence[int]) -> list[dict[tuple[str, int], float]]:
        """For each number of rows, seconds of linears by format and outputs, their weights coming from memory."""
        trial = Trial(self.pool)
        trial.source("x", WIDTH)
        outputs = [self.outputs(least) for least in COLD_OUTPUTS]
        for kind in self.formats:
            for index, num_outputs in enumerate(outputs):
                trial.linear(f"{kind} {index}", "x", kind, num_outputs)
        last = {num_outputs: index for index, num_outputs in enumerate(outputs)}  # of each size
        runner = trial.start("x", self.isa, self.num_threads, max(num_rows))
        found = []
        for count in num_rows:
            seconds = runner.operator_seconds(NUM_LONG_RUNS, count)
            found.append({(kind, size): seconds[f"{kind} {i}"] for kind in self.formats for size, i in last.items()})
        return found

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
    for counts, least in ((FEW_ROWS, FEW_ROWS_OUTPUTS), (MANY_ROWS, MANY_ROWS_OUTPUTS)):
        outputs = timer.outputs(least)
        runner = timer.warm_runner(outputs)
        for num_rows in counts:
            begin_s = time.perf_counter()
            if rows and begin_s + last_s * num_rows / rows[-1] > deadline_s:
                break
            num_runs = NUM_RUNS if num_rows in FEW_ROWS else NUM_LONG_RUNS
            weights, pack_s = timer.split(runner.operator_seconds(num_runs, num_rows), outputs)
            rows.append(num_rows)
            activation_s.append(pack_s)
            for kind, seconds in weights.items():
                weight_s[kind].append(seconds)
            last_s = time.perf_counter() - begin_s
    packing = RowCurve(tuple(rows), tuple(activation_s))
    curves = {kind: RowCurve(tuple(rows), tuple(seconds)) for kind, seconds in weight_s.items()}
    return _with_memory(timer, curves, packing, read_rates), packing


def _with_memory(
    timer: LinearTimer, curves: Mapping[str, RowCurve], packing: RowCurve, read_rates: Sequence[ReadRate]
) -> dict[str, LinearSpeed]:
    """Speeds of each format with what its weights' way from memory adds to the curves of arithmetic."""
    num_rows = [1, COLD_ROWS] if packing.rows[-1] >= COLD_ROWS else [1]
    cold = timer.cold_seconds(num_rows)
    sizes = sorted({size for _, size in cold[0]})
    num_bytes = {(kind, size): round(size * WIDTH * timer.bytes_of(kind)) for kind, size in cold[0]}
    rate = read_rate(read_rates, timer.num_threads, sum(num_bytes.values()))

    def work_s(index: int, kind: str, size: int) -> float:
        all_s = cold[index][kind, size]
        return max(all_s - timer.call_s - packing.at(num_rows[index]) * WIDTH, LEAST_SHARE * all_s)

    speeds = {}
    for kind, curve in curves.items():
        shares = [min(num_bytes[kind, size] / (work_s(0, kind, size) * rate), 1.0) for size in sizes]
        stream = StreamCurve(tuple(num_bytes[kind, size] for size in sizes), tuple(shares))
        overlap = 1.0
        if len(num_rows) > 1:
            size = timer.outputs(OVERLAP_OUTPUTS)
            times = (size * WIDTH * curve.at(COLD_ROWS), work_s(0, kind, size))
            hidden_s = sum(times) - work_s(1, kind, size)
            overlap = min(max(hidden_s / min(times), 0.0), 1.0)
        speeds[kind] = LinearSpeed(timer.bytes_of(kind), curve, stream, overlap)
    return speeds
