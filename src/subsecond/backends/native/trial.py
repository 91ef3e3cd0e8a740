"""A graph with made-up weights that the native backend runs to time its operators; judges no figure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.batch import ForwardBatch
from subsecond.backends.native.backend import BLOCK_TOKENS, NativeBackend, NativeConfig
from subsecond.backends.native.sparse_weights import choose_form
from subsecond.backends.native.weight_formats import SPARSE_FORMAT
from subsecond.backends.native.weights import PackedMatrix, PackedWeights
from subsecond.graph.builder import GraphBuilder
from subsecond.graph.memory import plan_memory
from subsecond.graph.plan import Segment

FILL = 0x11  # codes and scales are then small in every format, and no float is infinite or denormal
ALIGNMENT = 64


class WeightPool:
    """Memory that made-up weights share: each takes the bytes after the last one's, from the start again at the end."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = _native.allocate(num_bytes)
        self._memory[:] = FILL
        self._used = 0

    def matrix(self, kind: str, num_outputs: int, num_inputs: int) -> PackedMatrix:
        """A matrix of that packed format."""
        size = _native.packed_size(kind, num_outputs, num_inputs)
        assert size <= self._memory.size, "the pool is smaller than a matrix"
        start = self._used if self._used + size <= self._memory.size else 0
        self._used = start + -(-size // ALIGNMENT) * ALIGNMENT
        return PackedMatrix(kind, num_outputs, num_inputs, self._memory[start : start + size])


class Trial:
    """Operators are added by `graph`, once their weights are; then `start` gives what runs them."""

    def __init__(self, pool: WeightPool) -> None:
        self._pool = pool
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._matrices: dict[str, PackedMatrix] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self.graph = GraphBuilder(self._shapes)

    def source(self, output: str, width: int) -> str:
        """A value whose rows are all ones."""
        name = f"{output}.rows"
        size = _native.packed_size("F32", 1, width)
        self.add(name, PackedMatrix("F32", 1, width, np.full(size // 4, 1.0, np.float32).view(np.uint8)))
        return self.graph.embed(output, name, 1, width, "first")

    def add(self, name: str, matrix: PackedMatrix) -> str:
        """Make a matrix known to the graph."""
        self._matrices[name] = matrix
        self._shapes[name] = matrix.shape
        return name

    def vector(self, name: str, size: int) -> str:
        """A vector of ones."""
        self._vectors[name] = np.ones(size, np.float32)
        self._shapes[name] = (size,)
        return name

    def linear(self, output: str, source: str, kind: str, num_outputs: int) -> PackedMatrix:
        """A linear with weights of its own, which are returned."""
        matrix = self._pool.matrix(kind, num_outputs, self.graph.width(source))
        self.graph.linear(output, source, self.add(f"{output}.weight", matrix), num_outputs)
        return matrix

    def sparse_linears(
        self, outputs: Sequence[str], source: str, density: float, num_outputs: int, kind: str | None = None
    ) -> int:
        """A linear of each name with that part of its weights there, drawn once and copied; bytes of one of them.

        `kind` is the sparse format; None for the one that a model's weight would get, at the least a bitmap.
        """
        num_inputs = self.graph.width(source)
        generator = np.random.default_rng(0)
        values = generator.standard_normal((num_outputs, num_inputs), dtype=np.float32)
        values[generator.random(values.shape, dtype=np.float32) >= density] = 0
        bits = values.astype(np.float16).view(np.uint16)
        form = choose_form(num_outputs, num_inputs, [(0, bits)])
        kind = kind or (form[0] if form else SPARSE_FORMAT)
        num_bytes = _native.sparse_size(kind, num_outputs, num_inputs, bits, 0)
        memory = _native.allocate(len(outputs) * num_bytes).reshape(len(outputs), num_bytes)
        _native.pack_sparse_into(kind, num_outputs, num_inputs, bits, 0, memory[0])
        memory[1:] = memory[0]
        for output, packed in zip(outputs, memory, strict=True):
            matrix = PackedMatrix(kind, num_outputs, num_inputs, packed)
            self.graph.linear(output, source, self.add(f"{output}.weight", matrix), num_outputs)
        return num_bytes

    def start(self, output: str, isa: str, num_threads: int, max_rows: int, context_tokens: int = 0) -> Runner:
        """What runs the graph, whose own output are the selected rows of `output`, at that many positions or rows."""
        graph = self.graph.build(self.graph.select_rows("selected rows", output))
        num_blocks = -(-max(context_tokens, max_rows) // BLOCK_TOKENS)
        config = NativeConfig(isa, num_threads, max_rows, num_blocks)
        segment = Segment("native", "cpu", graph, plan_memory(graph))
        return Runner(NativeBackend(segment, PackedWeights(self._matrices, self._vectors), config))


class Runner:
    """Runs a trial's graph for one sequence and times it."""

    def __init__(self, backend: NativeBackend) -> None:
        self._backend = backend

    def run(self, num_rows: int, start: int = 0, num_selected: int = 1) -> float:
        """Seconds of one step with rows at consecutive positions from `start`, the batch's arrays included."""
        begin_s = time.perf_counter()
        batch = ForwardBatch(
            token_ids=np.zeros(num_rows, np.int32),
            positions=np.arange(start, start + num_rows, dtype=np.int32),
            row_sequence=np.zeros(num_rows, np.int32),
            block_tables=np.arange(self._backend.num_blocks, dtype=np.int32)[None],
            logits_rows=np.arange(num_rows - num_selected, num_rows, dtype=np.int32),
        )
        self._backend.forward(batch)
        return time.perf_counter() - begin_s

    def operator_seconds(
        self, num_runs: int, num_rows: int, start: int = 0, num_selected: int = 1
    ) -> Mapping[str, float]:
        """Seconds of every operator by its output, after one run to warm up: `typical` of `num_runs`."""
        self.run(num_rows, start, num_selected)
        samples: dict[str, list[float]] = {}
        for _ in range(num_runs):
            self._backend.profile(is_on=True)
            self.run(num_rows, start, num_selected)
            for output, nanoseconds in self._backend.profiled_ns().items():
                samples.setdefault(output, []).append(nanoseconds * 1e-9)
        self._backend.profile(is_on=False)
        return {output: typical(seconds) for output, seconds in samples.items()}


def typical(seconds: Sequence[float]) -> float:
    """The lower quartile: another program may be given a processor at any time.

    Not the least: an operator seems to take no time when the thread that looks at the clock comes late to it.
    """
    return sorted(seconds)[len(seconds) // 4]
