"""Writes the operators of a graph as ONNX nodes, for whole texts without a cache; stores no weights itself.

Values are float32 [batch, sequence, width]. Only operators of the standard are used, so that compilers for other
processors know them; a runtime may fuse what it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto

from subsecond.compress.onnx_nodes import NodeList
from subsecond.compress.onnx_weights import OnnxWeights
from subsecond.core.errors import UnsupportedError
from subsecond.graph.graph import Graph
from subsecond.graph.ops import (
    Activate,
    Activation,
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
    SelectRows,
    Softcap,
    Split,
)

INPUT = "input_ids"
_LOW = np.float32(-3.0e38)  # what a position that is not seen counts before softmax


class OnnxGraph:
    """Translates one graph; `factors_of` gives the values of a weight that divides rotary frequencies."""

    def __init__(self, graph: Graph, nodes: NodeList, weights: OnnxWeights, factors_of: Callable[[str], Any]) -> None:
        self._graph = graph
        self._nodes = nodes
        self._weights = weights
        self._factors_of = factors_of
        self._names: dict[str, str] = {}
        self._rotations: dict[Rotary, tuple[str, str]] = {}
        self._masks: dict[int | None, str] = {}
        self._tables = {op.weight for op in graph.ops if isinstance(op, Embed)}

    def write(self, op: Op, output: str | None = None) -> None:
        """Add the nodes of the next operator; `output` names its value where others have to find it."""
        name = self._result(op)
        self._names[op.output] = name if output is None else self._nodes.add("Identity", name, output=output)

    def _result(self, op: Op) -> str:
        add = self._nodes.add
        match op:
            case Embed():
                return self._embed(op)
            case Linear():
                return self._linear(op)
            case Normalize():
                return self._normalize(op)
            case Rope():
                return self._rope(op)
            case Attention():
                return self._attend(op)
            case Activate():
                return self._activate(self._names[op.input], op.activation)
            case GatedActivation():
                return add("Mul", self._activate(self._names[op.gate], op.activation), self._names[op.up])
            case Add():
                return add("Add", self._names[op.left], self._names[op.right])
            case Scale():
                return add("Mul", self._names[op.input], self._number(op.factor))
            case Softcap():
                return self._cap(self._names[op.input], op.cap)
            case Split():
                return self._slice(self._names[op.input], op.start, op.end)
            case SelectRows():
                return self._names[op.input]
            case MixtureOfExperts():
                raise UnsupportedError("models with experts have no export to ONNX; export them to GGUF")

    def _integers(self, *values: int) -> str:
        return self._nodes.constant(np.array(values, np.int64))

    def _number(self, value: float) -> str:
        return self._nodes.constant(np.array(value, np.float32))

    def _reshape(self, x: str, sizes: Sequence[int]) -> str:
        return self._nodes.add("Reshape", x, self._integers(*sizes))

    def _slice(self, x: str, start: int, end: int) -> str:
        return self._nodes.add("Slice", x, self._integers(start), self._integers(end), self._integers(-1))

    def _positions(self) -> str:
        """0, 1, 2, ... int64 [sequence]."""
        if "positions" not in self._names:
            length = self._nodes.add("Squeeze", self._nodes.add("Shape", INPUT, start=1, end=2), self._integers(0))
            zero, one = (self._nodes.constant(np.array(each, np.int64)) for each in (0, 1))
            self._names["positions"] = self._nodes.add("Range", zero, length, one)
        return self._names["positions"]

    def _embed(self, op: Embed) -> str:
        if op.index == "token":
            return self._weights.rows(op.weight, INPUT)
        index = self._positions() if op.index == "position" else self._integers(0)
        rows = self._nodes.add("Gather", self._weights.vector(op.weight), index)
        return self._nodes.add("Unsqueeze", rows, self._integers(0))

    def _linear(self, op: Linear) -> str:
        assert len(op.weights) == 1 and op.norm is None and op.gated is None and op.residual is None, "a fused graph"
        weight, bias = op.weights[0], op.biases[0]
        y = self._weights.product(weight, self._names[op.input], is_table=weight in self._tables)
        return y if bias is None else self._nodes.add("Add", y, self._weights.vector(bias))

    def _normalize(self, op: Normalize) -> str:
        x = self._names[op.input]
        if op.group_width is None:
            return self._norm(x, op.norm)
        width = self._graph.values[op.output].width
        groups = self._reshape(x, (0, 0, width // op.group_width, op.group_width))
        return self._reshape(self._norm(groups, op.norm), (0, 0, width))

    def _norm(self, x: str, norm: Norm) -> str:
        add, weight = self._nodes.add, self._weights.vector(norm.weight)
        if norm.kind == "layer":
            assert norm.bias is not None
            return add("LayerNormalization", x, weight, self._weights.vector(norm.bias), axis=-1, epsilon=norm.eps)
        square = add("ReduceMean", add("Mul", x, x), self._integers(-1), keepdims=1)
        root = add("Sqrt", add("Add", square, self._number(norm.eps)))
        return add("Mul", add("Div", x, root), weight)

    def _activate(self, x: str, activation: Activation) -> str:
        if activation == "silu":
            return self._nodes.add("Mul", x, self._nodes.add("Sigmoid", x))
        return self._nodes.add("Gelu", x, approximate="tanh" if activation == "gelu_tanh" else "none")

    def _cap(self, x: str, cap: float) -> str:
        add, limit = self._nodes.add, self._number(cap)
        return add("Mul", add("Tanh", add("Div", x, limit)), limit)

    def _rotation(self, rotary: Rotary) -> tuple[str, str]:
        """Cosines and sines [sequence, 1, pairs]; angles in float64, as positions may be large."""
        if rotary not in self._rotations:
            frequencies = np.array(rotary.frequencies, np.float64)
            if rotary.frequency_factors is not None:
                frequencies = frequencies / np.asarray(self._factors_of(rotary.frequency_factors), np.float64)
            add = self._nodes.add
            positions = add("Cast", self._positions(), to=TensorProto.DOUBLE)
            column = self._reshape(positions, (-1, 1, 1))
            angles = add("Mul", column, self._nodes.constant(frequencies.reshape(1, 1, -1)))
            turned = [add("Cast", add(kind, angles), to=TensorProto.FLOAT) for kind in ("Cos", "Sin")]
            if rotary.magnitude != 1.0:
                turned = [add("Mul", each, self._number(rotary.magnitude)) for each in turned]
            self._rotations[rotary] = turned[0], turned[1]
        return self._rotations[rotary]

    def _rope(self, op: Rope) -> str:
        assert op.rotary.pairing == "half", "rows are put in this order before"
        add, width, pairs = self._nodes.add, self._graph.values[op.output].width, op.rotary.dims // 2
        cosines, sines = self._rotation(op.rotary)
        x = self._reshape(self._names[op.input], (0, 0, width // op.head_dim, op.head_dim))
        left, right = self._slice(x, 0, pairs), self._slice(x, pairs, 2 * pairs)
        parts = [
            add("Sub", add("Mul", left, cosines), add("Mul", right, sines)),
            add("Add", add("Mul", right, cosines), add("Mul", left, sines)),
        ]
        if op.rotary.dims < op.head_dim:
            parts.append(self._slice(x, op.rotary.dims, op.head_dim))
        return self._reshape(add("Concat", *parts, axis=-1), (0, 0, width))

    def _mask(self, window: int | None) -> str:
        """Whether a position (row) sees another (column), [sequence, sequence]."""
        if window not in self._masks:
            add = self._nodes.add
            rows, columns = self._reshape(self._positions(), (-1, 1)), self._reshape(self._positions(), (1, -1))
            seen = add("LessOrEqual", columns, rows)
            if window is not None:
                size = self._nodes.constant(np.array(window, np.int64))
                seen = add("And", seen, add("Less", add("Sub", rows, columns), size))
            self._masks[window] = seen
        return self._masks[window]

    def _attend(self, op: Attention) -> str:
        """Heads are [batch, key/value heads, heads of one, sequence, channels], so that groups share theirs."""
        assert op.rotary is None, "a fused graph"
        add, group = self._nodes.add, op.num_heads // op.num_kv_heads
        split = partial(self._split_heads, op)
        q, k, v = split(op.query, group, (0, 2, 3, 1, 4)), split(op.key, 1, (0, 2, 3, 4, 1)), split(op.value, 1, None)
        scores = add("Mul", add("MatMul", q, k), self._number(op.scale))
        if op.softcap is not None:
            scores = self._cap(scores, op.softcap)
        if op.is_causal:
            scores = add("Where", self._mask(op.window), scores, self._nodes.constant(np.array(_LOW)))
        mixed = add("MatMul", add("Softmax", scores, axis=-1), v)
        rows = add("Transpose", mixed, perm=[0, 3, 1, 2, 4])
        return self._reshape(rows, (0, 0, op.num_heads * op.head_dim))

    def _split_heads(self, op: Attention, name: str, group: int, order: tuple[int, ...] | None) -> str:
        heads = self._reshape(self._names[name], (0, 0, op.num_kv_heads, group, op.head_dim))
        return self._nodes.add("Transpose", heads, perm=list(order or (0, 2, 3, 1, 4)))
