"""Times the linears of a model in every format that its weights may get, on this machine; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from subsecond.backends.native.loading import choose_isa
from subsecond.backends.native.trial import Trial, WeightPool
from subsecond.backends.native.weight_formats import PACKED_FORMATS
from subsecond.core.errors import InputError
from subsecond.core.hardware import probe

MB = 1 << 20
LEAST_BYTES, MOST_BYTES = 32 * MB, 512 * MB
NUM_RUNS = 9
MAX_COPIES = 64


@dataclass(frozen=True, slots=True, order=True)
class Kernel:
    """A linear of `num_outputs` and `num_inputs` whose weights have a packed format, such as "Q4_K" or "INT8"."""

    format: str
    num_outputs: int
    num_inputs: int


def time_kernels(
    kernels: Iterable[Kernel],
    row_counts: Sequence[int] = (1, 128),
    *,
    working_bytes: int = 160 * MB,
    isa: str | None = None,
    num_threads: int | None = None,
) -> dict[int, dict[Kernel, float]]:
    """Seconds of each linear, packing of its activations included, by number of rows.

    working_bytes  of weights that are read in turn: those of the model, so that as much stays in the processor's
                   caches from one step to the next as in use
    isa, num_threads  None for what a model would run with

    Raises InputError for a format without kernels.
    """
    distinct = sorted(set(kernels))
    unknown = sorted({kernel.format for kernel in distinct} - set(PACKED_FORMATS))
    if unknown:
        raise InputError(f"there are no kernels for {', '.join(unknown)}; formats are {', '.join(PACKED_FORMATS)}")
    if not distinct:
        return {num_rows: {} for num_rows in row_counts}
    working_bytes = min(max(working_bytes, LEAST_BYTES), MOST_BYTES)
    trial = Trial(WeightPool(working_bytes))
    sources = {width: trial.source(f"x{width}", width) for width in {kernel.num_inputs for kernel in distinct}}
    used, copies = 0, 0
    while used < working_bytes and copies < MAX_COPIES:
        for index, kernel in enumerate(distinct):
            name = f"{index} {copies}"
            used += trial.linear(name, sources[kernel.num_inputs], kernel.format, kernel.num_outputs).data.size
        copies += 1
    threads = num_threads or probe().num_usable_cores
    runner = trial.start(next(iter(sources.values())), choose_isa(isa), threads, max(row_counts))
    found: dict[int, dict[Kernel, float]] = {}
    for num_rows in row_counts:
        seconds = runner.operator_seconds(NUM_RUNS, num_rows)
        found[num_rows] = {
            kernel: median(seconds[f"{index} {copy}"] for copy in range(copies))
            for index, kernel in enumerate(distinct)
        }
    return found


def step_seconds(times: Mapping[Kernel, float], kernels: Iterable[Kernel]) -> float:
    """Sum of the times of the linears of one step."""
    return sum(times[kernel] for kernel in kernels)


def time_sparse(
    shapes: Sequence[tuple[int, int]],
    densities: Sequence[float],
    others: Mapping[str, str],
    *,
    working_bytes: int = 64 * MB,
) -> tuple[dict[float, float], dict[str, float]]:
    """Seconds of linears (outputs, inputs) for one row: without zeros by density, and by the names of `others`.

    others  packed format by the name that its times get
    """
    kernels = {name: [Kernel(kind, *shape) for shape in shapes] for name, kind in others.items()}
    times = time_kernels((each for kinds in kernels.values() for each in kinds), (1,), working_bytes=working_bytes)[1]
    other_seconds = {name: step_seconds(times, kinds) for name, kinds in kernels.items()}
    return {density: _sparse_seconds(shapes, density, working_bytes) for density in densities}, other_seconds


def _sparse_seconds(shapes: Sequence[tuple[int, int]], density: float, working_bytes: int) -> float:
    trial = Trial(WeightPool(LEAST_BYTES))
    sources = {width: trial.source(f"x{width}", width) for width in {width for _, width in shapes}}
    copies = max(2, min(MAX_COPIES, working_bytes // sum(outputs * inputs * 2 for outputs, inputs in shapes)))
    names = {index: [f"{index} {copy}" for copy in range(copies)] for index in range(len(shapes))}
    for index, (outputs, inputs) in enumerate(shapes):
        trial.sparse_linears(names[index], sources[inputs], density, outputs)
    runner = trial.start(next(iter(sources.values())), choose_isa(), probe().num_usable_cores, 1)
    seconds = runner.operator_seconds(NUM_RUNS, 1)
    return sum(median(seconds[name] for name in each) for each in names.values())
