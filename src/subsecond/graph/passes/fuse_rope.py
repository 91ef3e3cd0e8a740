"""Let attention rotate its queries and keys itself, where it touches them anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from subsecond.graph.graph import Graph
from subsecond.graph.ops import Attention, Op, Rope


def fuse_rope(graph: Graph) -> Graph:
    """Two equal Ropes, read only as query and key of one Attention, become `Attention.rotary`."""
    producers = {op.output: op for op in graph.ops}
    readers = graph.readers()
    folded: set[str] = set()
    ops: list[Op] = []
    for op in graph.ops:
        ropes = _ropes(op, producers, readers, graph.output) if isinstance(op, Attention) else None
        if isinstance(op, Attention) and ropes is not None:
            query, key = ropes
            folded |= {query.output, key.output}
            op = replace(op, query=query.input, key=key.input, rotary=query.rotary)
        ops.append(op)
    return graph.with_ops(op for op in ops if op.output not in folded)


def _ropes(
    op: Attention, producers: Mapping[str, Op], readers: Mapping[str, Sequence[int]], graph_output: str
) -> tuple[Rope, Rope] | None:
    query, key = producers[op.query], producers[op.key]
    if op.rotary is not None or not isinstance(query, Rope) or not isinstance(key, Rope) or query == key:
        return None
    if query.rotary != key.rotary or (query.head_dim, key.head_dim) != (op.head_dim, op.head_dim):
        return None
    if any(len(readers[rope.output]) != 1 or rope.output == graph_output for rope in (query, key)):
        return None
    return query, key
