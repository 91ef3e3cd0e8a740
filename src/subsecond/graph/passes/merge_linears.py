"""Merge linears that read the same input into one matrix product; it changes no arithmetic of any output column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from subsecond.graph.graph import Graph
from subsecond.graph.ops import Attention, GatedActivation, Linear, Normalize, Op, Rope, Split, Value


def merge_linears(graph: Graph) -> Graph:
    """One Linear and Splits in place of the q/k/v linears of an attention and the gate/up linears of an activation.

    The Splits keep the names of the linears that they replace, so whoever else reads those values is not concerned.
    """
    producers = {op.output: op for op in graph.ops}
    order = {name: index for index, name in enumerate(producers)}
    added: list[Value] = []
    replaced: dict[str, tuple[Op, ...]] = {}
    for names in _candidates(graph, producers):
        linears = [producers[name] for name in names]
        if not _can_merge(linears) or any(name in replaced for name in names):
            continue
        first, *others = sorted(names, key=order.__getitem__)
        merged, splits, value = _merge([op for op in linears if isinstance(op, Linear)], graph.values)
        added.append(value)
        replaced[first] = (merged, *splits)
        replaced.update((name, ()) for name in others)
    return graph.with_ops((new for op in graph.ops for new in replaced.get(op.output, (op,))), added)


def _candidates(graph: Graph, producers: Mapping[str, Op]) -> Iterator[tuple[str, ...]]:
    """Values that one attention or one gated activation reads, looked at through Rope and norms of heads."""
    for op in graph.ops:
        if isinstance(op, Attention):
            yield tuple(_linear_of(name, producers) for name in (op.query, op.key, op.value))
        elif isinstance(op, GatedActivation):
            yield op.gate, op.up


def _linear_of(name: str, producers: Mapping[str, Op]) -> str:
    op = producers[name]
    while isinstance(op, Rope | Normalize):
        name = op.input
        op = producers[name]
    return name


def _can_merge(ops: list[Op]) -> bool:
    if len({op.output for op in ops}) < len(ops):
        return False
    first = ops[0]
    return isinstance(first, Linear) and all(
        isinstance(op, Linear)
        and (op.input, op.norm) == (first.input, first.norm)
        and op.gated is None
        and op.residual is None
        for op in ops
    )


def _merge(linears: list[Linear], values: Mapping[str, Value]) -> tuple[Linear, list[Split], Value]:
    names = [op.output for op in linears]
    scope = names[0].rpartition(".")[0]
    output = "+".join([names[0], *(name.removeprefix(f"{scope}.") for name in names[1:])])
    weights = tuple(weight for op in linears for weight in op.weights)
    biases = tuple(bias for op in linears for bias in op.biases)
    splits, start = [], 0
    for name in names:
        end = start + values[name].width
        splits.append(Split(name, output, start, end))
        start = end
    merged = Linear(output, linears[0].input, weights, biases, norm=linears[0].norm)
    return merged, splits, Value(output, start, values[names[0]].rows)
