"""Plan memory: values that are never alive together share floats of one arena; allocates nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from subsecond.graph.graph import Graph
from subsecond.graph.ops import Activate, Add, Linear, Normalize, Op, Rows, Scale, Softcap, Split, inputs_of

ALIGNMENT_FLOATS = 16  # a cache line, so that every value starts on one whatever the number of rows


@dataclass(frozen=True, slots=True)
class Alias:
    """A value that is columns `start` and following of value `root`."""

    root: str
    start: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where every value lies. There are two arenas: one for values of all rows, one for those of selected rows.

    In an arena with room for R rows, a value of `offset_by_value` is a dense array [rows, its width] that starts
    R * offset floats into the arena. A value of `alias_by_value` begins `start` floats later than its root, with the
    root's width as the distance between rows. `width` and `selected_width` are the floats a row of the two arenas.
    """

    offset_by_value: Mapping[str, int]
    alias_by_value: Mapping[str, Alias]
    width: int
    selected_width: int


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Values that share one range of floats, alive from operator `start` to operator `last`, both included."""

    values: tuple[str, ...]
    width: int
    rows: Rows
    start: int
    last: int


def plan_memory(graph: Graph) -> MemoryPlan:
    """Greedy best fit, widest buffer first (Pisarchyk and Lee 2020, arXiv 2001.03288)."""
    aliases = _aliases(graph)
    buffers = _buffers(graph, aliases)
    offsets: dict[str, int] = {}
    widths: dict[Rows, int] = {}
    arenas: tuple[Rows, Rows] = ("all", "selected")
    for rows in arenas:
        placed: list[tuple[int, _Buffer]] = []
        for buffer in sorted((b for b in buffers if b.rows == rows), key=lambda b: (-b.width, b.start)):
            offset = _best_fit(buffer, placed)
            placed.append((offset, buffer))
            offsets.update((name, offset) for name in buffer.values)
        widths[rows] = max((offset + buffer.width for offset, buffer in placed), default=0)
    return MemoryPlan(MappingProxyType(offsets), MappingProxyType(aliases), widths["all"], widths["selected"])


def last_reads(graph: Graph) -> dict[str, int]:
    """Index of the last operator that needs each value; reading an alias reads its root, the output is never freed."""
    aliases = _aliases(graph)
    last: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        for name in (op.output, *inputs_of(op)):
            last[name] = index
            if name in aliases:
                last[aliases[name].root] = index
    last[graph.output] = len(graph.ops)
    if graph.output in aliases:
        last[aliases[graph.output].root] = len(graph.ops)
    return last


def _aliases(graph: Graph) -> dict[str, Alias]:
    aliases: dict[str, Alias] = {}
    for op in graph.ops:
        if isinstance(op, Split):
            outer = aliases.get(op.input, Alias(op.input, 0))
            aliases[op.output] = Alias(outer.root, outer.start + op.start)
    return aliases


def _buffers(graph: Graph, aliases: Mapping[str, Alias]) -> list[_Buffer]:
    last = last_reads(graph)
    buffer_by_value: dict[str, _Buffer] = {}
    for index, op in enumerate(graph.ops):
        name = op.output
        if name in aliases:
            continue
        value = graph.values[name]
        width = -(-value.width // ALIGNMENT_FLOATS) * ALIGNMENT_FLOATS
        buffer = _Buffer((name,), width, value.rows, index, last[name])
        for source in _overwritable(op, aliases):
            before = buffer_by_value.get(source)
            is_alike = before is not None and (graph.values[source].width, before.rows) == (value.width, value.rows)
            if before is not None and is_alike and last[source] == index:
                buffer = _Buffer((*before.values, name), width, value.rows, before.start, last[name])
                break
        buffer_by_value.update((shared, buffer) for shared in buffer.values)
    return list({buffer.values: buffer for buffer in buffer_by_value.values()}.values())


def _overwritable(op: Op, aliases: Mapping[str, Alias]) -> tuple[str, ...]:
    """Inputs that the output may lie on when nobody needs them later: each element is read before it is written."""
    match op:
        case Linear(residual=str() as residual):
            input_root = aliases[op.input].root if op.input in aliases else op.input
            return () if input_root == residual else (residual,)
        case Normalize() | Activate() | Scale() | Softcap():
            return (op.input,)
        case Add():
            return (op.left, op.right)
        case _:
            return ()


def _best_fit(buffer: _Buffer, placed: Iterable[tuple[int, _Buffer]]) -> int:
    """Offset of the smallest gap that holds `buffer` between the placed buffers which are alive with it."""
    alive = [(at, other) for at, other in placed if other.start <= buffer.last and buffer.start <= other.last]
    best, best_gap, end = -1, 0, 0
    for offset, other in sorted(alive, key=lambda item: item[0]):
        gap = offset - end
        if gap >= buffer.width and (best < 0 or gap < best_gap):
            best, best_gap = end, gap
        end = max(end, offset + other.width)
    return best if best >= 0 else end
