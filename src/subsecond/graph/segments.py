"""Cuts a graph along its residual stream, so that a model can be walked through with few weights in memory."""

from __future__ import annotations

from dataclasses import dataclass

from subsecond.graph.graph import Graph
from subsecond.graph.ops import Linear, MixtureOfExperts, Op, inputs_of, weights_of
from subsecond.graph.taps import residual_values


@dataclass(frozen=True, slots=True)
class Segment:
    """Operators between two values of the residual stream, in order.

    name     of the value that it ends with, as reports have it: "blk.3.attn", "blk.3.ffn"; the first is the embedding,
             the last "head"
    inputs   values that it reads from segments before it
    outputs  values that segments after it read, the graph's output of the last one
    """

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that it reads, in order."""
        return tuple(dict.fromkeys(name for op in self.ops for name in weights_of(op)))

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of the weights of its linears and experts, in order."""
        found: dict[str, None] = {}
        for op in self.ops:
            if isinstance(op, Linear):
                found |= dict.fromkeys(op.weights)
            elif isinstance(op, MixtureOfExperts):
                found |= dict.fromkeys((op.gate, op.up, op.down))
        return tuple(found)

    @property
    def linears(self) -> dict[str, tuple[str, ...]]:
        """Names of the weights of its linears by the value that they read."""
        found: dict[str, tuple[str, ...]] = {}
        for op in self.ops:
            if isinstance(op, Linear):
                found[op.input] = (*found.get(op.input, ()), *op.weights)
        return found


def segments(graph: Graph) -> tuple[Segment, ...]:
    """The segments of an unfused graph in order; UnsupportedError for one without a residual stream."""
    producers = {op.output: index for index, op in enumerate(graph.ops)}
    stream = residual_values(graph)
    ends = [producers[name] + 1 for name in stream]
    names = [name.removesuffix("_residual") for name in stream]
    if ends[-1] < len(graph.ops):
        ends.append(len(graph.ops))
        names.append("head")
    found, start = [], 0
    for name, end in zip(names, ends, strict=True):
        found.append(_segment(graph, name, start, end))
        start = end
    return tuple(found)


def _segment(graph: Graph, name: str, start: int, end: int) -> Segment:
    ops = graph.ops[start:end]
    computed = {op.output for op in ops}
    inputs = dict.fromkeys(value for op in ops for value in inputs_of(op) if value not in computed)
    read_later = {value for op in graph.ops[end:] for value in inputs_of(op)} | {graph.output}
    outputs = tuple(op.output for op in ops if op.output in read_later)
    return Segment(name, ops, tuple(inputs), outputs)
