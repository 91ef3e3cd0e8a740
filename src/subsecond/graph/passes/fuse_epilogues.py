"""Let a linear finish its own result: the gated activation and the residual addition join the matrix product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from subsecond.graph.graph import Graph
from subsecond.graph.ops import Add, GatedActivation, Linear, Op, Split


def fuse_epilogues(graph: Graph) -> Graph:
    """Gate/up Linear -> Split, Split -> GatedActivation becomes `Linear.gated`; Linear -> Add `Linear.residual`.

    A linear gets one epilogue at most: no kernel has to know two.
    """
    return _fuse_residuals(_fuse_gates(graph))


def _fuse_gates(graph: Graph) -> Graph:
    producers = {op.output: op for op in graph.ops}
    readers = graph.readers()
    replaced: dict[str, Op | None] = {}
    for op in graph.ops:
        if isinstance(op, GatedActivation):
            linear = _gate_up_linear(op, producers, readers, graph)
            if linear is not None:
                replaced |= {linear.output: None, op.gate: None, op.up: None}
                replaced[op.output] = replace(linear, output=op.output, gated=op.activation)
    new_ops = (replaced.get(op.output, op) for op in graph.ops)
    return graph.with_ops(op for op in new_ops if op is not None)


def _gate_up_linear(
    gated: GatedActivation, producers: Mapping[str, Op], readers: Mapping[str, Sequence[int]], graph: Graph
) -> Linear | None:
    """The linear that computes nothing but gate and up of `gated`, in this order; None when there is no such."""
    gate, up = producers[gated.gate], producers[gated.up]
    if not isinstance(gate, Split) or not isinstance(up, Split) or gate.input != up.input:
        return None
    linear = producers[gate.input]
    if not isinstance(linear, Linear) or len(linear.weights) != 2 or linear.gated or linear.residual:
        return None
    gate_rows, up_rows = (graph.weights[weight][0] for weight in linear.weights)
    is_in_order = (gate.start, gate.end, up.start, up.end) == (0, gate_rows, gate_rows, gate_rows + up_rows)
    is_read_here_only = len(readers[gate.output]) == len(readers[up.output]) == 1 and len(readers[linear.output]) == 2
    is_inner = graph.output not in (gate.output, up.output, linear.output)
    return linear if is_in_order and is_read_here_only and is_inner and gate_rows == up_rows else None


def _fuse_residuals(graph: Graph) -> Graph:
    producers = {op.output: op for op in graph.ops}
    readers = graph.readers()
    replaced: dict[str, Op | None] = {}
    for op in graph.ops:
        if not isinstance(op, Add):
            continue
        # In a residual stream the branch stands right; of two linears it is the one to be folded.
        for name, residual in ((op.right, op.left), (op.left, op.right)):
            linear = producers[name]
            is_inner = len(readers[name]) == 1 and name != graph.output
            if is_inner and isinstance(linear, Linear) and not linear.gated and not linear.residual:
                replaced[name] = None
                replaced[op.output] = replace(linear, output=op.output, residual=residual)
                break
    new_ops = (replaced.get(op.output, op) for op in graph.ops)
    return graph.with_ops(op for op in new_ops if op is not None)
