"""Runs calibration windows through a model one segment at a time, so that only its weights are in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from subsecond.backends.batch import Float32, ForwardBatch, Int32
from subsecond.backends.torch.backend import run_ops
from subsecond.backends.torch.step import Step, make_step, rotaries_of
from subsecond.compress.statistics import InputStatistics, StatisticsSum
from subsecond.core.errors import FormatError
from subsecond.core.heap import trim_heap
from subsecond.graph.graph import Graph
from subsecond.graph.ops import inputs_of, weights_of
from subsecond.graph.segments import Segment, segments
from subsecond.models.weights import WeightSource

CHUNK_ROWS = 2048  # of windows that run together: enough for large products, few enough for small values between
CPU = torch.device("cpu")

# Is given the name of a value and its rows, float32 [rows, width].
Observer = Callable[[str, Tensor], None]


class Walk:
    """Windows int32 [windows, tokens] on their way through `graph`, which is unfused, with weights of `source`.

    All arithmetic is fp32 by torch. Visit the segments in order; each visit has to `advance` before the next.
    """

    def __init__(self, graph: Graph, source: WeightSource, windows: Int32) -> None:
        self.graph = graph
        self.source = source
        self.windows = windows
        self.segments = segments(graph)
        self._rotaries = rotaries_of(graph)
        names = dict.fromkeys(each.frequency_factors for each in self._rotaries if each.frequency_factors)
        self._factors = {name: _tensor(source.dequantize(name)) for name in names}
        self.live: dict[str, Tensor] = {}  # the values that segments to come read
        per_chunk = max(1, CHUNK_ROWS // windows.shape[1])
        self._chunks = [slice(start, start + per_chunk) for start in range(0, len(windows), per_chunk)]

    @property
    def states(self) -> Mapping[str, Float32]:
        """The values at the place where the walk is, float32 [windows * tokens, width] each."""
        return {name: value.numpy() for name, value in self.live.items()}

    def visits(self, start: int = 0, states: Mapping[str, Float32] | None = None) -> Iterator[Visit]:
        """Visit the segments from number `start` on, with `states` as they were when it was reached."""
        assert start == 0 or states is not None, "a walk that goes on needs the states of where it was"
        if states is not None:
            self.live = {name: _tensor(value) for name, value in states.items()}
        for index in range(start, len(self.segments)):
            visit = Visit(self, index)
            yield visit
            assert visit.has_advanced, f"segment {self.segments[index].name} was visited without going on"

    def chunks(self) -> Iterator[tuple[slice, Step]]:
        """Rows of states that run together, and the step that they are."""
        num_tokens = self.windows.shape[1]
        for chunk in self._chunks:
            windows = self.windows[chunk]
            yield slice(chunk.start * num_tokens, chunk.start * num_tokens + windows.size), self._step(windows)

    def read_after(self, index: int) -> set[str]:
        """Values that the segments after number `index` read."""
        return {name for segment in self.segments[index + 1 :] for name in segment.inputs}

    def _step(self, windows: Int32) -> Step:
        num_windows, num_tokens = windows.shape
        batch = ForwardBatch(
            token_ids=windows.reshape(-1),
            positions=np.tile(np.arange(num_tokens, dtype=np.int32), num_windows),
            row_sequence=np.repeat(np.arange(num_windows, dtype=np.int32), num_tokens),
            block_tables=np.arange(num_windows, dtype=np.int32)[:, None],
            logits_rows=np.arange(windows.size, dtype=np.int32),
        )
        return make_step(batch, num_tokens, self._rotaries, self._factors, CPU, torch.float32)


class Visit:
    """One segment with its weights in fp32; `weights` may be replaced before `advance`."""

    def __init__(self, walk: Walk, index: int) -> None:
        self.segment = walk.segments[index]
        self.index = index
        self.has_advanced = False
        self.weights = {name: _read(walk, name) for name in self.segment.weights}
        self.walk = walk
        self._reached = _Reached()

    def observe(self, observer: Observer, names: Collection[str] | None = None, *, is_kept: bool = False) -> None:
        """Run all windows with the weights as they are; `observer` sees the rows that linears read, once each.

        Of `names` only, where given; nothing is computed beyond the last of them. `is_kept` as in `reach`.
        """
        for _ in self.reach(self.segment.linears if names is None else names, observer, is_kept=is_kept):
            pass

    def reach(
        self, names: Collection[str], observer: Observer | None = None, *, is_kept: bool = False
    ) -> Iterator[tuple[slice, Step, dict[str, Tensor]]]:
        """Run all windows until `names` are known; rows, their step, and the values that operators to come read.

        `observer` sees the rows of `names` once each. What is known then `is_kept`, if asked for, in memory for all
        windows: runs that need no more than that go on from there, as long as the weights before it are the same ones.
        """
        names = set(names)
        end = end_of(self.segment, names)
        begin = self._begin(end, names)
        to_come = {name for op in self.segment.ops[end:] for name in inputs_of(op)}.union(self.segment.outputs, names)

        def passing(name: str, value: Tensor) -> Tensor:
            if name in names and observer is not None:
                observer(name, value)
            return value

        found = []
        for index, (rows, step) in enumerate(self.walk.chunks()):
            values = self._begin_values(begin, index, rows)
            with torch.no_grad():
                for name in names & values.keys():
                    passing(name, values[name])
                run_ops(self.segment.ops[begin:end], values, self.weights, step, kept=to_come, passing=passing)
            if is_kept:
                found.append({name: value for name, value in values.items() if name in to_come})
            yield rows, step, values
        if is_kept:
            used = {name: self.weights[name] for op in self.segment.ops[:end] for name in weights_of(op)}
            self._reached = _Reached(end, used, found)

    def statistics(self, *, has_gram: bool) -> dict[str, InputStatistics]:
        """Statistics of the value that each linear reads, by the name of the value."""
        sums: dict[str, StatisticsSum] = {}

        def add(name: str, rows: Tensor) -> None:
            if name not in sums:
                sums[name] = StatisticsSum(rows.shape[1], has_gram=has_gram)
            sums[name].add(rows)

        self.observe(add)
        return {name: each.statistics() for name, each in sums.items()}

    def chunks(self) -> Iterator[tuple[slice, Step]]:
        """Rows that run together, as `outputs` takes them."""
        return self.walk.chunks()

    def outputs(self, rows: slice, step: Step, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The outputs of the segment for a chunk of rows, with other weights where given; gradients pass."""
        values = self._inputs(rows)
        run_ops(self.segment.ops, values, weights or self.weights, step, kept=self.segment.outputs)
        return {name: values[name] for name in self.segment.outputs}

    def advance(self) -> None:
        """Run all windows with the weights as they now are, and go on to the next segment; the head is not run."""
        walk, segment = self.walk, self.segment
        self.has_advanced = True
        if walk.graph.output not in segment.outputs:
            found: dict[str, list[Tensor]] = {name: [] for name in segment.outputs}
            for _, _, values in self.reach(segment.outputs):
                for name in segment.outputs:
                    found[name].append(values[name])
            self._reached = _Reached()
            walk.live |= {name: torch.cat(parts) for name, parts in found.items()}
        for name in walk.live.keys() - walk.read_after(self.index):
            del walk.live[name]
        walk.source.release()
        trim_heap()

    def _inputs(self, rows: slice) -> dict[str, Tensor]:
        return {name: self.walk.live[name][rows] for name in self.segment.inputs}

    def _begin(self, end: int, names: set[str]) -> int:
        """The operator from which a run up to `end` has to start for `names`."""
        reached = self._reached
        missed = names - {op.output for op in self.segment.ops[reached.end :]}
        is_same = all(self.weights[name] is held for name, held in reached.weights.items())
        return reached.end if reached.end <= end and is_same and missed <= reached.names else 0

    def _begin_values(self, begin: int, index: int, rows: slice) -> dict[str, Tensor]:
        return dict(self._reached.values[index]) if begin else self._inputs(rows)


@dataclass(frozen=True, slots=True)
class _Reached:
    """What is known of each chunk of rows before operator number `end`, computed with `weights`."""

    end: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    values: Sequence[Mapping[str, Tensor]] = ()

    @property
    def names(self) -> set[str]:
        return set(self.values[0]) if self.values else set()


def end_of(segment: Segment, names: Collection[str]) -> int:
    """The number of operators that have to run for all of `names` to be known."""
    return 1 + max((index for index, op in enumerate(segment.ops) if op.output in names), default=-1)


def _read(walk: Walk, name: str) -> Tensor:
    value = walk.source.dequantize(name)
    if not np.isfinite(value).all():
        raise FormatError(f"weight {name!r} has values that are not finite; the model file is damaged")
    if value.shape != walk.graph.weights[name]:
        raise FormatError(f"weight {name!r} has shape {value.shape}; the graph reads {walk.graph.weights[name]}")
    return _tensor(value)


def _tensor(value: Float32) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value))
