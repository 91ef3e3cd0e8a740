"""Keeps values from the middle of a graph, so that they can be looked at; changes nothing of how they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

from subsecond.core.errors import UnsupportedError
from subsecond.graph.graph import Graph
from subsecond.graph.memory import ALIGNMENT_FLOATS, MemoryPlan, plan_memory
from subsecond.graph.ops import Add, Embed, Normalize, Op, SelectRows, Value


def residual_values(graph: Graph) -> tuple[str, ...]:
    """The values of the residual stream in order: the embedded tokens, then the sum after each part of each layer.

    Where a norm follows the sum, its result is the one that goes on. Raises UnsupportedError for a graph without
    such a stream.
    """
    producers = {op.output: op for op in graph.ops}
    selected = next((op for op in graph.ops if isinstance(op, SelectRows)), None)
    name, found = selected.input if selected else graph.output, list[str]()
    while True:
        found.append(name)
        op = producers[name]
        if isinstance(op, Normalize):
            op = producers[op.input]
        if not isinstance(op, Add) or isinstance(producers[op.right], Embed):
            break
        name = op.left
    if len(found) < 2:
        raise UnsupportedError("the graph of this model has no residual stream whose values could be compared")
    return tuple(reversed(found))


def tapped(graph: Graph, names: Sequence[str]) -> Graph:
    """`graph` up to the last of `names`, with a copy of the selected rows of each; see `tap_of`.

    Meant for a graph after its passes, which stays as it is. UnsupportedError for a name that it does not have (passes
    may have folded it into an operator) or that has other rows.
    """
    wanted = dict.fromkeys(names)
    known = {name: value for name, value in graph.values.items() if value.rows == "all"}
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        raise UnsupportedError(f"the graph keeps no value {missing[0] if missing else ''!r} that could be looked at")
    ops: list[Op] = []
    left = set(wanted)
    for op in graph.ops:
        ops.append(op)
        if op.output in left:
            ops.append(SelectRows(tap_of(op.output), op.output))
            left.remove(op.output)
        if not left:
            break
    values = {name: value for op in ops if (value := graph.values.get(name := op.output))}
    values |= {tap_of(name): Value(tap_of(name), known[name].width, "selected") for name in wanted}
    cut = replace(graph, ops=tuple(ops), values=MappingProxyType(values), output=ops[-1].output)
    cut.check()
    return cut


def tap_of(name: str) -> str:
    """The name of the copy of a value."""
    return f"tap {name}"


def plan_taps(graph: Graph, names: Sequence[str]) -> tuple[MemoryPlan, int]:
    """Memory of a `tapped` graph, in which the copies lie side by side and last; and the floats a row before them.

    In a step with R selected rows the copy of names[i] begins R * (floats before + i * `tap_width`) floats into the
    arena of selected rows, and is a dense array [R, its width].
    """
    memory = plan_memory(graph)
    start, width = memory.selected_width, tap_width(graph, names)
    offsets = dict(memory.offset_by_value)
    offsets |= {tap_of(name): start + index * width for index, name in enumerate(names)}
    return replace(memory, offset_by_value=MappingProxyType(offsets), selected_width=start + len(names) * width), start


def tap_width(graph: Graph, names: Sequence[str]) -> int:
    """Floats a row that the copy of each of `names` takes."""
    widest = max(graph.values[name].width for name in names)
    return -(-widest // ALIGNMENT_FLOATS) * ALIGNMENT_FLOATS
