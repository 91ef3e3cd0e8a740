"""Fold a norm into the linears that read it, so that its result never goes through memory."""

from __future__ import annotations

from dataclasses import replace

from subsecond.graph.graph import Graph
from subsecond.graph.ops import Linear, Normalize, Op


def fuse_norms(graph: Graph) -> Graph:
    """An RMS norm of whole rows that only linears without a norm read becomes `Linear.norm` of those readers."""
    readers = graph.readers()
    folded = {
        op.output: op
        for op in graph.ops
        if isinstance(op, Normalize)
        and op.norm.kind == "rms"
        and op.group_width is None
        and op.output != graph.output
        and readers[op.output]
        and all(_can_take(graph.ops[index], op.output) for index in readers[op.output])
    }
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, Linear) and op.input in folded:
            norm = folded[op.input]
            ops.append(replace(op, input=norm.input, norm=norm.norm))
        elif op.output not in folded:
            ops.append(op)
    return graph.with_ops(ops)


def _can_take(op: Op, name: str) -> bool:
    return isinstance(op, Linear) and op.norm is None and op.input == name and op.residual != name
