"""Times every kernel that can run here, by shape, number of rows and threads, as a share of what the machine can do.

Run from the repository: python -m bench.kernels [--isas avx2,...] [--formats Q4_0,INT8] [--shapes gate-up-1b,...]
                         [--rows 1,8,32,128,512] [--threads 1,2] > kernels.json

A linear reads its weights from memory and does two operations for each weight and row. Its share is the larger one of
two: bytes a second by what as many threads read from memory, and operations a second by the fastest integer multiply of
its instruction set, both measured in the same run. Attention is timed by context and rows; its share is that of the
bytes of keys and values (one row), or of the fp32 multiply (many). The table goes to standard error, the results with
the machine's peaks as one JSON object to standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.compare import names_of
from subsecond import _native
from subsecond.backends.native import measuring
from subsecond.backends.native.timing_attention import AttentionTimer
from subsecond.backends.native.trial import Trial, WeightPool
from subsecond.backends.native.weight_formats import PACKED_FORMATS, SPARSE_FORMATS
from subsecond.backends.probe import read_rate
from subsecond.core.hardware import probe as describe_machine

MB = 1 << 20
POOL_BYTES = 512 * MB
MEMORY_BYTES = 256 * MB  # of weights in one step, so that they come from memory
MAX_LAYERS = 80
LEAST_BYTES = 128 * MB  # of which it can be said that they come from memory
SHAPES: Mapping[str, tuple[int, int]] = {  # inputs, outputs
    "gate-up-1b": (2048, 16384),
    "down-1b": (8192, 2048),
    "qkv-1b": (2048, 3072),
    "o-1b": (2048, 2048),
    "gate-up-smollm2": (576, 3072),
    "down-smollm2": (1536, 576),
    "qkv-smollm2": (576, 960),
    "o-smollm2": (576, 576),
}
SPARSE_ZEROS = {  # sparse formats with their share of zeros
    f"{name}{zeros}": (name, zeros / 100) for name in SPARSE_FORMATS for zeros in (50, 80, 90)
}
FORMATS = (*PACKED_FORMATS, *SPARSE_ZEROS)
CONTEXTS = (1024, 8192)
HEADS = {"1b": (64, 8, 4), "smollm2": (64, 3, 3)}  # width of a head, key/value heads, query heads for each
NUM_RUNS = 5


@dataclass(frozen=True, slots=True)
class Result:
    """One kernel at one size: typical seconds of a call and shares of the machine's peaks of the same threads."""

    kernel: str
    isa: str
    shape: str
    num_rows: int
    num_threads: int
    seconds: float
    bytes_s: float
    operations_s: float
    memory_share: float
    operation_share: float

    @property
    def share(self) -> float:
        """Of what bounds it."""
        return max(self.memory_share, self.operation_share)


class Peaks:
    """What the machine does at most, by threads."""

    def __init__(self, thread_counts: Sequence[int]) -> None:
        self.read_rates = measuring.measure_read_rates(max(thread_counts), measuring.THREAD_BYTES)
        self.multiplies = {count: _native.measure_peaks(count, 5e-3) for count in thread_counts}

    def memory(self, num_threads: int) -> float:
        """Bytes a second from memory."""
        return read_rate(self.read_rates, num_threads, 2**40)

    def multiply(self, isa: str, num_threads: int, *, is_float: bool) -> float:
        """Operations a second of the fastest multiply of an instruction set or one that it includes."""
        order = [*_native.available_isas()]
        included = order[order.index(isa) :]
        return max(
            rate
            for set_name, instruction, rate in self.multiplies[num_threads]
            if set_name in included and (instruction.startswith(("vfma", "fp32", "fmla")) == is_float)
        )


def layers_of(num_bytes: int) -> int:
    """How many linears of that size come from memory in one step."""
    return min(MAX_LAYERS, -(-MEMORY_BYTES // num_bytes))


def add_sparse(trial: Trial, outputs: int, inputs: int, packed_format: str, zeros: float) -> tuple[int, int]:
    """Add linears y0, y1, ... of one weight with that share of zeros, copied for each; its bytes, and how many."""
    num_layers = layers_of(round(outputs * inputs * 4 * (1 - zeros)))
    outputs_of = [f"y{layer}" for layer in range(num_layers)]
    return trial.sparse_linears(outputs_of, "x", 1 - zeros, outputs, packed_format), num_layers


def time_linears(
    pool: WeightPool, peaks: Peaks, isa: str, shape: str, formats: Sequence[str], rows: Sequence[int], num_threads: int
) -> Iterator[Result]:
    """Every format at one shape; enough layers that each step reads weights from memory."""
    inputs, outputs = SHAPES[shape]
    for kind in formats:
        trial = Trial(pool)
        trial.source("x", inputs)
        if kind in SPARSE_ZEROS:
            num_bytes, num_layers = add_sparse(trial, outputs, inputs, *SPARSE_ZEROS[kind])
        else:
            num_bytes = _native.packed_size("INT4" if kind == "NESTED4" else kind, outputs, inputs)  # that are read
            num_layers = layers_of(num_bytes)
            for layer in range(num_layers):
                trial.linear(f"y{layer}", "x", kind, outputs)
        runner = trial.start("x", isa, num_threads, max(rows))
        for count in rows:
            seconds = runner.operator_seconds(NUM_RUNS, count)
            call_s = sorted(seconds[f"y{layer}"] for layer in range(num_layers))[num_layers // 2]
            operations = 2.0 * inputs * outputs * count / call_s
            yield Result(
                f"linear {kind}",
                isa,
                shape,
                count,
                num_threads,
                call_s,
                num_bytes / call_s,
                operations,
                num_bytes / call_s / peaks.memory(num_threads) if num_layers * num_bytes >= LEAST_BYTES else 0.0,
                operations / peaks.multiply(isa, num_threads, is_float=kind.startswith(("F", "BF"))),
            )


def time_attention(
    pool: WeightPool, peaks: Peaks, isa: str, shape: str, rows: Sequence[int], num_threads: int
) -> Iterator[Result]:
    """Attention over the last positions of each context."""
    head_dim, num_kv_heads, group = HEADS[shape]
    timer = AttentionTimer(pool, isa, num_threads, 0.0)
    runner = timer.runner(head_dim, num_kv_heads, (group,), context=max(CONTEXTS))
    for start in range(0, max(CONTEXTS), 512):
        runner.run(512, start)
    kv_bytes = num_kv_heads * _native.kv_head_bytes(isa, "", head_dim) / _native.BLOCK_TOKENS
    for context in CONTEXTS:
        for count in rows:
            seconds = runner.operator_seconds(NUM_RUNS, count, context - count)[f"{group}"]
            pairs = count * (context - (count - 1) / 2)
            operations = 4.0 * pairs * group * num_kv_heads * head_dim / seconds
            yield Result(
                "attention",
                isa,
                f"{shape} {context}",
                count,
                num_threads,
                seconds,
                context * kv_bytes / seconds,
                operations,
                context * kv_bytes / seconds / peaks.memory(num_threads),
                operations / peaks.multiply(isa, num_threads, is_float=True),
            )


def show(result: Result) -> None:
    """One line of the table."""
    bound = "memory" if result.memory_share > result.operation_share else "multiply"
    print(
        f"{result.kernel:14} {result.isa:10} {result.shape:16} {result.num_rows:5} rows {result.num_threads:2} threads "
        f"{result.seconds * 1e6:10.1f} us {result.bytes_s / 1e9:7.1f} GB/s {result.operations_s / 1e9:9.1f} Gop/s "
        f"{result.share:6.1%} of {bound}",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    """Time, print, write."""
    machine = describe_machine()
    isas = [name for name in _native.available_isas() if name != "scalar"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--isas", type=names_of, default=isas)
    parser.add_argument("--formats", type=names_of, default=list(FORMATS), help=", ".join(FORMATS))
    parser.add_argument("--shapes", type=names_of, default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--heads", type=names_of, default=list(HEADS), help=", ".join(HEADS) + "; none")
    parser.add_argument("--rows", type=names_of, default=["1", "8", "32", "128", "512"])
    parser.add_argument("--threads", type=names_of, default=sorted({"1", str(machine.num_usable_cores)}))
    args = parser.parse_args()
    rows, threads = [int(count) for count in args.rows], [int(count) for count in args.threads]
    peaks, pool = Peaks(threads), WeightPool(POOL_BYTES)
    results = []
    for isa in args.isas:
        for num_threads in threads:
            for shape in args.shapes:
                for result in time_linears(pool, peaks, isa, shape, args.formats, rows, num_threads):
                    results.append(result)
                    show(result)
            for shape in (name for name in args.heads if name != "none"):
                for result in time_attention(pool, peaks, isa, shape, rows, num_threads):
                    results.append(result)
                    show(result)
    report = {
        "machine": {"processor": machine.processor_name, "features": machine.flags, "cores": machine.num_usable_cores},
        "processor_share": _native.measure_processor_share(max(threads)),
        "read_rates": [asdict(rate) for rate in peaks.read_rates],
        "multiplies": {str(count): found for count, found in peaks.multiplies.items()},
        "results": [asdict(result) | {"share": result.share} for result in results],
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
