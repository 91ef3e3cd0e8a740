"""Measures a machine: peaks, read rates, and what operators cost, by running small graphs with the native backend.

Threads, packing and barriers are so those of a model. Every figure comes from several short
runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from subsecond import _native
from subsecond.backends.batch import SampleBatch
from subsecond.backends.native.loading import ISA_VARIABLE, choose_isa
from subsecond.backends.native.timing_attention import AttentionTimer, time_attention
from subsecond.backends.native.timing_linears import LinearTimer, time_linears
from subsecond.backends.native.trial import Trial, WeightPool, typical
from subsecond.backends.native.weight_formats import MEASURED_FORMATS
from subsecond.backends.native.weights import LAYOUT_VERSION
from subsecond.backends.probe import VALUE_OPERATORS, Fingerprint, Overheads, Peak, Probe, ReadRate
from subsecond.backends.sampling import sample
from subsecond.core import hardware
from subsecond.graph.ops import Norm, Rotary

MB = 1 << 20
READ_UNIT = 1 << 14  # working sets are multiples of it
THREAD_BYTES = tuple(MB << shift for shift in range(10))  # working sets of a thread, 1 MB to 512 MB
MEMORY_SHARE = 0.25  # of the available memory, at most, for the largest working set
READ_LIMIT_S = 0.8  # a system that has to find memory first may take long
LINEARS_LIMIT_S = 2.0  # far more than they take where there are fast kernels
ATTENTION_LIMIT_S = 0.6
PEAK_TRY_S = 1e-3
POOL_BYTES = 160 * MB  # of made-up weights, beyond most caches
VALUE_ROWS, VALUE_WIDTH, HEAD_DIM = 64, 2048, 64
NUM_CALLS = 16
VOCABULARIES = (32768, 131072)
NUM_RUNS = 8


def fingerprint(isa: str | None = None, num_threads: int | None = None) -> Fingerprint:
    """Whose figures `measure` gives; None stands for the instruction set and the threads that a model runs with."""
    machine = hardware.probe()
    extension = Path(str(_native.__file__)).stat()
    return Fingerprint(
        processor_name=machine.processor_name,
        architecture=machine.architecture,
        flags=machine.flags,
        num_cores=machine.num_cores,
        version=version("subsecond"),
        build=f"{extension.st_size}-{extension.st_mtime_ns}",
        layout=LAYOUT_VERSION,
        isa=choose_isa(isa or os.environ.get(ISA_VARIABLE)),
        num_threads=num_threads or machine.num_usable_cores,
    )


def measure(isa: str | None = None, num_threads: int | None = None) -> Probe:
    """Measure this machine, in about two to three seconds.

    isa          instruction set of the kernels; None for the one that a model would run with
    num_threads  None for as many as a model would run with
    """
    owner = fingerprint(isa, num_threads)
    threads = owner.num_threads
    processor_share = _native.measure_processor_share(threads)
    counts = sorted({1, threads})
    peaks = tuple(
        Peak(set_name, instruction, count, operations_s)
        for count in counts
        for set_name, instruction, operations_s in _native.measure_peaks(count, PEAK_TRY_S)
    )
    read_rates = measure_read_rates(threads, THREAD_BYTES)
    pool = WeightPool(POOL_BYTES)
    overheads = _overheads(pool, owner)
    linear_timer = LinearTimer(pool, MEASURED_FORMATS, owner.isa, threads, overheads.call_s)
    linears, activation_s = time_linears(linear_timer, read_rates, LINEARS_LIMIT_S)
    attention_timer = AttentionTimer(pool, owner.isa, threads, overheads.call_s)
    memory_rate = read_rates[-1].bytes_s
    return Probe(
        fingerprint=owner,
        processor_share=processor_share,
        peaks=peaks,
        read_rates=read_rates,
        overheads=overheads,
        linears=linears,
        activation_s=activation_s,
        attention=time_attention(attention_timer, memory_rate, ATTENTION_LIMIT_S),
        values=_values(pool, owner, overheads.call_s),
    )


def measure_read_rates(num_threads: int, thread_bytes: Sequence[int]) -> tuple[ReadRate, ...]:
    """Of one thread and of all, for working sets of a thread as far as memory and READ_LIMIT_S allow; by threads."""
    allowed = hardware.probe().available_bytes * MEMORY_SHARE / num_threads
    thread_bytes = [size // READ_UNIT * READ_UNIT for size in thread_bytes]
    sizes = [thread_bytes[0], *(size for size in thread_bytes[1:] if size <= allowed)]
    found = _native.measure_read_rates(num_threads, sizes, READ_LIMIT_S)
    return tuple(ReadRate(*rate) for rate in sorted(found))


def _overheads(pool: WeightPool, owner: Fingerprint) -> Overheads:
    trial = Trial(pool)
    trial.source("x", HEAD_DIM)
    calls = [trial.graph.scale(f"call {i}", trial.graph.select_rows(f"none {i}", "x"), 1.0) for i in range(NUM_CALLS)]
    runner = trial.start("x", owner.isa, owner.num_threads, 1)
    seconds = runner.operator_seconds(NUM_RUNS, 1, num_selected=0)
    call_s = median([seconds[name] for name in calls])
    run_s, barrier_s = _native.measure_pool(owner.num_threads)
    step_s = _typical_s(lambda: runner.run(1, num_selected=0)) - (2 * NUM_CALLS + 2) * call_s
    sample_s = [_typical_s(_sampling(size)) for size in VOCABULARIES]
    logit_s = (sample_s[1] - sample_s[0]) / (VOCABULARIES[1] - VOCABULARIES[0])
    return Overheads(
        step_s=max(step_s, 0.0),
        call_s=call_s,
        barrier_s=barrier_s,
        run_s=run_s,
        sample_s=max(sample_s[0] - logit_s * VOCABULARIES[0], 0.0),
        logit_s=max(logit_s, 0.0),
    )


def _sampling(vocab_size: int) -> Callable[[], object]:
    """A function that draws the most likely of that many tokens."""
    logits = np.random.default_rng(0).standard_normal((1, vocab_size), np.float32)
    one, zero, none = np.ones(1, np.float32), np.zeros(1, np.float32), np.zeros(0, np.int32)
    index, offsets = np.zeros(1, np.int32), np.zeros(2, np.int32)
    batch = SampleBatch(
        zero,
        index,
        one,
        zero,
        one,
        zero,
        zero,
        index.astype(np.uint64),
        index,
        index,
        offsets,
        none,
        none.astype(np.float32),
        offsets,
        none,
        none,
    )
    return lambda: sample(logits, batch)


def _values(pool: WeightPool, owner: Fingerprint, call_s: float) -> dict[str, float]:
    """Seconds of one value of each operator in VALUE_OPERATORS."""
    trial = Trial(pool)
    graph, x, y = trial.graph, trial.source("Embed", VALUE_WIDTH), trial.source("y", VALUE_WIDTH)
    graph.normalize("Normalize", x, Norm(trial.vector("norm", VALUE_WIDTH), 1e-5))
    graph.rope("Rope", x, HEAD_DIM, Rotary(tuple(10000.0 ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)), "half"))
    graph.gated_activation("GatedActivation", x, y, "silu")
    graph.activate("Activate", x, "silu")
    graph.add("Add", x, y)
    graph.scale("Scale", x, 0.5)
    graph.softcap("Softcap", x, 30.0)
    graph.select_rows("SelectRows", x)
    seconds = trial.start(x, owner.isa, owner.num_threads, VALUE_ROWS).operator_seconds(
        NUM_RUNS, VALUE_ROWS, num_selected=VALUE_ROWS
    )
    num_values = VALUE_ROWS * VALUE_WIDTH
    return {name: max(seconds[name] - call_s, 0.0) / num_values for name in VALUE_OPERATORS}


def _typical_s(run: Callable[[], object]) -> float:
    """Seconds of `run`, after one to warm up."""
    run()
    samples = []
    for _ in range(NUM_RUNS):
        begin_s = time.perf_counter()
        run()
        samples.append(time.perf_counter() - begin_s)
    return typical(samples)
