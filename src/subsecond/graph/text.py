"""Print a graph for people: one line an operator, with shapes, weight bytes and FLOPs; decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from subsecond.graph.graph import Graph
from subsecond.graph.ops import (
    Activate,
    Add,
    Attention,
    Embed,
    GatedActivation,
    Linear,
    MixtureOfExperts,
    Norm,
    Normalize,
    Op,
    Rope,
    Rotary,
    Scale,
    Softcap,
    Split,
    inputs_of,
    weights_of,
)

_HEADINGS = ("", "operator", "output", "shape", "reads", "details", "weights", "weight bytes", "FLOPs/row")
_RIGHT_ALIGNED = frozenset({0, 7, 8})


def graph_text(graph: Graph, weight_types: Mapping[str, tuple[str, int]] | None = None) -> str:
    """A table of the operators of `graph` and a line of totals.

    `weight_types` maps the name of a weight to its stored type and its bytes; weights that it does not name count
    as zero bytes. FLOPs of attention depend on the positions so far and are given apart.
    """
    types = weight_types or {}
    lines = [_HEADINGS]
    for index, op in enumerate(graph.ops):
        value = graph.values[op.output]
        rows = "rows" if value.rows == "all" else "selected"
        lines.append(
            (
                str(index),
                type(op).__name__,
                op.output,
                f"[{rows}, {value.width}]",
                ", ".join(inputs_of(op)),
                _details(op),
                _weights_text(op, graph, types),
                f"{_num_bytes(weights_of(op), types):,}",
                f"{flops_per_row(op, graph):,}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    return "\n".join([*(_row(line, widths) for line in lines), "", *_totals(graph, types)])


def flops_per_row(op: Op, graph: Graph) -> int:
    """Additions and multiplications for one row, without the part of attention that grows with the context."""
    width = graph.values[op.output].width
    match op:
        case Linear():
            num_norm = 4 * graph.values[op.input].width if op.norm else 0
            num_epilogue = 4 * width if op.gated else width * (op.residual is not None)
            num_bias = sum(graph.weights[bias][0] for bias in op.biases if bias)
            return sum(2 * graph.weights[w][0] * graph.weights[w][1] for w in op.weights) + (
                num_norm + num_epilogue + num_bias
            )
        case Normalize() | GatedActivation() | Activate() | Softcap():
            return 4 * width
        case MixtureOfExperts():
            _, ff_width, _ = graph.weights[op.gate]
            return op.num_chosen * (6 * ff_width * width + 4 * ff_width + 2 * width)
        case Rope():
            return 3 * (width // op.head_dim) * op.rotary.dims
        case Attention() if op.rotary:
            return 3 * (op.num_heads + op.num_kv_heads) * op.rotary.dims
        case Add() | Scale():
            return width
        case _:
            return 0


def flops_per_position(op: Op) -> int:
    """Additions and multiplications that one row of `op` spends on each position that it attends to."""
    return 4 * op.num_heads * op.head_dim if isinstance(op, Attention) else 0


def _row(cells: Iterable[str], widths: Iterable[int]) -> str:
    padded = (
        cell.rjust(width) if column in _RIGHT_ALIGNED else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(padded).rstrip()


def _details(op: Op) -> str:
    match op:
        case Linear():
            parts = (
                _norm(op.norm) if op.norm else "",
                f"gated {op.gated}" if op.gated else "",
                "residual" if op.residual else "",
            )
            return ", ".join(part for part in parts if part)
        case Normalize():
            groups = f", groups of {op.group_width}" if op.group_width else ""
            return f"{op.norm.kind} eps {op.norm.eps:g}{groups}"
        case Rope():
            return _rotary(op.rotary)
        case Attention():
            return _attention(op)
        case GatedActivation() | Activate():
            return op.activation
        case MixtureOfExperts():
            return f"{op.num_chosen} experts a row, {op.activation}"
        case Embed() if op.index != "token":
            return f"by {op.index}"
        case Scale():
            return f"by {op.factor:g}"
        case Softcap():
            return f"at {op.cap:g}"
        case Split():
            return f"[{op.start}:{op.end}]"
        case _:
            return ""


def _norm(norm: Norm) -> str:
    return f"norm eps {norm.eps:g}"


def _attention(op: Attention) -> str:
    parts = (
        f"layer {op.layer}, {op.num_heads}/{op.num_kv_heads} heads of {op.head_dim}",
        _rotary(op.rotary) if op.rotary else "",
        f"window {op.window}" if op.window else "",
        f"softcap {op.softcap:g}" if op.softcap else "",
        "" if op.is_causal else "both directions",
    )
    return ", ".join(part for part in parts if part)


def _rotary(rotary: Rotary) -> str:
    slowest = 2 * math.pi / rotary.frequencies[-1]
    return f"rope {rotary.pairing} {rotary.dims}, wavelengths up to {slowest:.4g}"


def _weights_text(op: Op, graph: Graph, types: Mapping[str, tuple[str, int]]) -> str:
    matrices = op.weights if isinstance(op, Linear) else weights_of(op)
    parts = []
    for name in matrices:
        shape = "x".join(str(size) for size in graph.weights[name])
        parts.append(f"{name} {shape} {types[name][0]}" if name in types else f"{name} {shape}")
    return ", ".join(parts)


def _num_bytes(weights: Iterable[str], types: Mapping[str, tuple[str, int]]) -> int:
    return sum(types[name][1] for name in set(weights) if name in types)


def _totals(graph: Graph, types: Mapping[str, tuple[str, int]]) -> list[str]:
    read = {name for op in graph.ops for name in weights_of(op)}
    # An embedding table is read a row at a time, so it counts for a step only where a linear reads it too.
    streamed = {name for op in graph.ops if not isinstance(op, Embed) for name in weights_of(op)}
    flops = dict.fromkeys(("all", "selected"), 0)
    for op in graph.ops:
        flops[graph.values[op.output].rows] += flops_per_row(op, graph)
    num_position_flops = sum(flops_per_position(op) for op in graph.ops)
    return [
        f"{len(graph.ops)} operators, {len(read)} weights, {_num_bytes(read, types):,} weight bytes, "
        f"of which a step reads {_num_bytes(streamed, types):,} and one row of each embedding table",
        f"{flops['all']:,} FLOPs a row, {num_position_flops:,} more a row and position attended to, "
        f"{flops['selected']:,} more a row with logits",
    ]
