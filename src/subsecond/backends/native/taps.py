"""Looks at values in the middle of a plan that runs with the native kernels; the plan stays the one that is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from subsecond.backends.batch import Float32, ForwardBatch
from subsecond.backends.native.backend import NativeBackend, Operand
from subsecond.graph.plan import Segment
from subsecond.graph.taps import plan_taps, tap_width, tapped


class NativeTaps(NativeBackend):
    """The plan of `served` up to the last of `names`, with its weights and with blocks of its own.

    `served`     the backend whose values are looked at; it has to stay open
    `names`      values that its plan keeps, those of all rows; another is an UnsupportedError
    `max_rows`   most rows of a step; the blocks hold `num_tokens`
    """

    def __init__(self, served: NativeBackend, names: Sequence[str], *, max_rows: int, num_tokens: int) -> None:
        self._names = tuple(dict.fromkeys(names))
        graph = tapped(served.segment.graph, self._names)
        memory, self._start = plan_taps(graph, self._names)
        self._tap_width = tap_width(graph, self._names)
        num_blocks = -(-num_tokens // served.block_tokens)
        config = replace(served.config, isa=served.isa, kv=served.kv, max_rows=max_rows, num_blocks=num_blocks)
        super().__init__(Segment("native", "cpu", graph, memory), served.weights, config)

    def values(self, batch: ForwardBatch) -> dict[str, Float32]:
        """Run one step; float32 [selected rows, width] of each name, views that the next step overwrites."""
        flat = self.forward(batch).reshape(-1)
        num_rows, found = len(batch.logits_rows), {}
        for index, name in enumerate(self._names):
            start, width = num_rows * index * self._tap_width, self._graph.values[name].width
            found[name] = flat[start : start + num_rows * width].reshape(num_rows, width)
        return found

    def _output_place(self) -> tuple[Operand, int]:
        width = len(self._names) * self._tap_width
        return (1, self._start, 0, width), width
