"""Write a graph operator by operator; widths follow from the weights, and shapes are checked while building."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from subsecond.core.errors import FormatError
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
    Rows,
    Scale,
    SelectRows,
    Softcap,
    Split,
    Value,
)


class GraphBuilder:
    """Collects operators; every method returns the name of the value that it computes.

    `shapes` holds the shapes of the file's weights: (out, in) or (length,). A weight that is missing or of another
    shape than the family's config says is a FormatError that names it.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._ops: list[Op] = []
        self._values: dict[str, Value] = {}
        self._weights: dict[str, tuple[int, ...]] = {}

    def has(self, weight: str) -> bool:
        """Whether the file has a weight of this name."""
        return weight in self._shapes

    def width(self, value: str) -> int:
        """Width of a value that was written before."""
        return self._values[value].width

    def embed(
        self,
        output: str,
        weight: str,
        num_rows: int,
        width: int,
        index: Literal["token", "position", "first"] = "token",
    ) -> str:
        """Rows of a table; weight [num_rows, width]."""
        self._weight(weight, (num_rows, width))
        return self._emit(Embed(output, weight, index), width)

    def linear(self, output: str, source: str, weight: str, width: int, *, bias: str | None = None) -> str:
        """source @ weight.T (+ bias); weight [width, width of source]."""
        self._weight(weight, (width, self.width(source)))
        if bias is not None:
            self._weight(bias, (width,))
        return self._emit(Linear(output, source, (weight,), (bias,)), width, self._values[source].rows)

    def normalize(self, output: str, source: str, norm: Norm, group_width: int | None = None) -> str:
        """A norm of the whole row, or of each group of `group_width` channels; weight and bias have that width."""
        width = group_width or self.width(source)
        self._weight(norm.weight, (width,))
        if norm.bias is not None:
            self._weight(norm.bias, (width,))
        return self._emit(Normalize(output, source, norm, group_width), self.width(source), self._values[source].rows)

    def rope(self, output: str, source: str, head_dim: int, rotary: Rotary) -> str:
        """Rotate heads by position."""
        if rotary.frequency_factors:
            self._weight(rotary.frequency_factors, (rotary.dims // 2,))
        return self._emit(Rope(output, source, head_dim, rotary), self.width(source), self._values[source].rows)

    def attention(self, op: Attention) -> str:
        """Grouped attention over the sequence."""
        return self._emit(op, op.num_heads * op.head_dim, self._values[op.query].rows)

    def gated_activation(self, output: str, gate: str, up: str, activation: Activation) -> str:
        """activation(gate) * up."""
        return self._emit(GatedActivation(output, gate, up, activation), self.width(gate), self._values[gate].rows)

    def activate(self, output: str, source: str, activation: Activation) -> str:
        """activation(source)."""
        return self._emit(Activate(output, source, activation), self.width(source), self._values[source].rows)

    def mixture_of_experts(self, op: MixtureOfExperts, num_experts: int, ff_width: int) -> str:
        """A weighted sum of `num_chosen` feed-forward parts a row."""
        width = self.width(op.input)
        self._weight(op.gate, (num_experts, ff_width, width))
        self._weight(op.up, (num_experts, ff_width, width))
        self._weight(op.down, (num_experts, width, ff_width))
        return self._emit(op, width, self._values[op.input].rows)

    def add(self, output: str, left: str, right: str) -> str:
        """left + right."""
        return self._emit(Add(output, left, right), self.width(left), self._values[left].rows)

    def scale(self, output: str, source: str, factor: float) -> str:
        """source * factor."""
        return self._emit(Scale(output, source, factor), self.width(source), self._values[source].rows)

    def softcap(self, output: str, source: str, cap: float) -> str:
        """cap * tanh(source / cap)."""
        return self._emit(Softcap(output, source, cap), self.width(source), self._values[source].rows)

    def split(self, output: str, source: str, start: int, end: int) -> str:
        """Columns [start, end) of source."""
        return self._emit(Split(output, source, start, end), end - start, self._values[source].rows)

    def select_rows(self, output: str, source: str) -> str:
        """Keep the rows whose logits were asked for."""
        return self._emit(SelectRows(output, source), self._values[source].width, "selected")

    def build(self, output: str) -> Graph:
        """The finished graph, checked."""
        values, weights = MappingProxyType(dict(self._values)), MappingProxyType(dict(self._weights))
        graph = Graph(tuple(self._ops), values, weights, output)
        graph.check()
        return graph

    def _emit(self, op: Op, width: int, rows: Rows = "all") -> str:
        self._ops.append(op)
        self._values[op.output] = Value(op.output, width, rows)
        return op.output

    def _weight(self, name: str, shape: tuple[int, ...]) -> None:
        given = self._shapes.get(name)
        if given is None:
            raise FormatError(f"the model file has no tensor {name!r}, which its family needs with shape {shape}")
        if tuple(given) != shape:
            raise FormatError(f"tensor {name!r} has shape {tuple(given)}; the model's configuration asks for {shape}")
        self._weights[name] = shape
